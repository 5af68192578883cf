"""Two cards in Markdown: the decision's, on which a reviewer answers, and the model's, which goes with the weights."""

from collections.abc import Mapping
from typing import Any

import yaml

from stillhouse.contract import METRICS, Decision, EvaluationSummary, Metric, SuiteSummary, sha256_of
from stillhouse.evaluation import phrases, tables
from stillhouse.evaluation.report import ReportInputs, environment, recipe_yaml
from stillhouse.evaluation.written import written_sentences
from stillhouse.recipe import Recipe

MARKS = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "warn": "⚠️", "promote": "✅", "reject": "❌"}

PIPELINES = {"text-classification": "text-classification", "masked-lm": "fill-mask", "causal-lm": "text-generation"}
"""By task, the name under which the Hugging Face hub lists such models."""

HUB_LICENCES = frozenset(
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "unlicense", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
        *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail"),
        *("gemma", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
    )
)
"""Licences that the hub knows by these identifiers; others are ``other`` with a name."""

HUB_METRICS: dict[Metric, str] = {"macro_f1": "f1", "brier": "brier_score"}
"""What the hub calls differently."""


def render_card(decision: Decision, summary: EvaluationSummary) -> str:
    """Return the decision as Markdown for an approval form.

    It holds the verdict, every rule with value, interval, n and power, the integrity checks, the notes, and the digest
    that the answer is bound to.
    """
    lines = [
        f"## {MARKS[decision.verdict]} {phrases.VERDICT_TITLES[decision.verdict]}",
        "",
        " ".join(filter(None, (phrases.headline(decision), phrases.worst_sentence(summary)))),
        "",
        *tables.markdown(_rules(decision)),
        "",
        *(f"- {MARKS[check.outcome]} **{check.name}**: {check.detail}" for check in decision.checks),
        *(f"- {note}" for note in decision.notes),
        "",
        f"Intervals at {100 * summary.confidence:g} %. Candidate `{decision.candidate}`, "
        f"model `{decision.model_sha256[:16]}…`, champion "
        + (f"`{decision.champion_sha256[:16]}…`." if decision.champion_sha256 else "none yet."),
        "",
        f"Your answer is bound to decision `{decision.digest}`.",
        "",
    ]
    return "\n".join(lines)


def render_model_card(inputs: ReportInputs) -> str:
    """Return the model card: YAML that the Hugging Face hub reads, then Markdown for people.

    It says what the model is and was made from, what it is for and where it fails, what was measured with which
    uncertainty, and how to load it. Equal inputs give equal bytes, and speeds apart it depends on the evidence alone.
    """
    summary, recipe = inputs.summary, inputs.recipe
    return (
        environment()
        .get_template("model-card.md.j2")
        .render(
            front_matter=yaml.safe_dump(_front_matter(recipe, summary), sort_keys=False, allow_unicode=True).rstrip(),
            recipe=recipe,
            recipe_sha256=sha256_of(recipe_yaml(recipe).encode()),
            decision=inputs.decision,
            summary=summary,
            home=summary.suites[0],
            timing=inputs.timings.models.get(summary.candidate),
            timed_on=phrases.timed_on(inputs.timings),
            teacher=recipe.teacher.title,
            limits=_limits(recipe, summary),
            evaluation=tables.markdown(_evaluation(summary)),
            in_domain=tables.markdown(_in_domain(summary)),
            inputs=inputs,
            data=tables.markdown(_data(inputs)),
            pipeline=PIPELINES[recipe.task],
            written=list(written_sentences(inputs.synthesis)) if inputs.synthesis else [],
            loss=_loss(recipe),
            teachers=_teachers(inputs),
        )
    )


def _loss(recipe: Recipe) -> str:
    """Say what was minimised."""
    config, synthesis = recipe.distillation, recipe.synthesis
    if synthesis and synthesis.kind == "rationales":
        weight = synthesis.label_weight
        return f"{weight:g} × cross-entropy with the labels + {1 - weight:.3g} × cross-entropy with the rationales"
    target = "the teacher's words" if synthesis else "the labels"
    if not recipe.imitates_distributions:
        return f"cross-entropy with {target}"
    terms = [
        f"{config.alpha} × cross-entropy with {target}",
        f"{1 - config.alpha:.3g} × T² × {config.divergence} from the teacher at temperature T = {config.temperature:g}",
        *(f"{term.weight:g} × {term.kind}" for term in config.features),
    ]
    return " + ".join(terms)


def _teachers(inputs: ReportInputs) -> list[str]:
    """Name every model whose output the student contains, with the terms that allow it."""
    if inputs.terms is None:
        return []
    return [
        f"{found.teacher}: {found.licence}, {found.ruling} for {found.use} use"
        + (f", signed off by {found.sign_off.by} ({found.sign_off.reference})" if found.sign_off else "")
        for found in inputs.terms.findings
        if found.role != "candidate-teacher"
    ]


def _rules(decision: Decision) -> tables.Table:
    rows = []
    for rule in decision.rules:
        value = f"{phrases.figure(rule.value)} {phrases.interval(rule.value)}" if rule.value else phrases.NOTHING
        texts = (
            MARKS[rule.outcome],
            f"**{rule.rule}**: {rule.requirement}",
            value,
            f"{rule.value.n:,}" if rule.value else phrases.NOTHING,
            phrases.NOTHING if rule.power is None else f"{100 * rule.power:.0f} %",
            rule.reason,
        )
        rows.append(_row(*texts))
    return tables.Table(columns=("", "requirement", "value", "n", "power", "reason"), rows=tuple(rows))


def _front_matter(recipe: Recipe, summary: EvaluationSummary) -> dict[str, Any]:
    licence = recipe.teacher.licence.lower()
    terms = {"license": licence} if licence in HUB_LICENCES else {"license": "other", "license_name": licence}
    source = recipe.teacher.source or recipe.student.source
    base = {"base_model": source.repo} if source and source.kind == "hub" else {}
    results: list[dict[str, Any]] = [
        {
            "task": {"type": PIPELINES[recipe.task]},
            "dataset": {"name": suite.name, "type": suite.name},
            "metrics": [
                {"type": HUB_METRICS.get(metric, metric), "name": METRICS[metric].title, "value": round(value, 4)}
                for metric, value in _headline_metrics(suite, summary.candidate).items()
            ],
        }
        for suite in summary.suites
    ]
    return {
        **terms,
        **base,
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[recipe.task],
        "tags": ["knowledge-distillation", "stillhouse"],
        "metrics": list(dict.fromkeys(metric["type"] for result in results for metric in result["metrics"])),
        "model-index": [{"name": recipe.promotion.model, "results": results}],
    }


def _headline_metrics(suite: SuiteSummary, model: str) -> Mapping[Metric, float]:
    found = suite.models[model].metrics
    wanted: tuple[Metric, ...] = (suite.metric, "macro_f1", "perplexity", "exact_match", "pass_at_1")
    return {metric: found[metric].value for metric in dict.fromkeys(wanted) if metric in found}


def _limits(recipe: Recipe, summary: EvaluationSummary) -> list[str]:
    """Say where the model fails or was not tried, worst first."""
    home, candidate = summary.suites[0], summary.candidate
    worst = max(summary.excess_drops.items(), key=lambda item: (item[1].value, item[0]), default=None)
    scores = home.models[candidate]
    weak = min(scores.per_label.items(), key=lambda item: (item[1].value, item[0]), default=None)
    lines = [phrases.worst_sentence(summary)]
    for suite in summary.suites:
        drop = summary.drops.get(candidate, {}).get(suite.name)
        if drop:
            lines.append(phrases.drop_sentence(summary, suite, drop))
    if worst and worst[1].low > 0:
        lines.append(f"On {worst[0]} it loses more than its teacher does: {phrases.half_width(worst[1])}.")
    for suite in summary.suites:
        if suite.kind == "out-of-scope" and (auroc := suite.score(candidate)):
            lines.append(
                f"Texts that no label fits ({suite.name}) get less confidence than others with a chance of "
                f"{phrases.half_width(auroc)}; 0.5 would be none at all. It answers with a label all the same."
            )
    if weak:
        lines.append(
            f"The label that it misses most is {weak[0]}: it finds {phrases.half_width(weak[1])} of its texts."
        )
    if "ece" in scores.metrics:
        lines.append(
            f"Its confidence is off by {phrases.half_width(scores.metrics['ece'])} on average on {home.name} "
            "(expected calibration error)."
        )
    if recipe.task == "text-classification":
        lines.append(f"It reads {recipe.training.max_tokens} tokens; what comes after them does not count.")
    return [line for line in lines if line]


def _evaluation(summary: EvaluationSummary) -> tables.Table:
    rows = []
    other = "teacher" if summary.has_teacher else "start"
    for suite in summary.suites:
        digits = phrases.DIGITS.get(suite.metric, 3)
        scores = (suite.score(model) for model in (summary.candidate, other))
        figures = (
            f"{phrases.figure(score, digits)} {phrases.interval(score, digits)}" if score else phrases.NOTHING
            for score in scores
        )
        rows.append(
            _row(
                suite.name,
                phrases.KIND_TITLES[suite.kind],
                f"{suite.num_items:,}",
                phrases.metric_title(suite.metric),
                *figures,
                *([phrases.kept_by(summary, suite.name, summary.candidate)] if summary.has_teacher else []),
            )
        )
    beside = ("teacher", "kept, or difference") if summary.has_teacher else ("before it learned",)
    return tables.Table(columns=("suite", "kind", "items", "metric", "this model", *beside), rows=tuple(rows))


def _in_domain(summary: EvaluationSummary) -> tables.Table:
    home = summary.suites[0]
    found = home.models[summary.candidate].metrics
    rows = (
        _row(
            phrases.metric_title(metric),
            f"{phrases.figure(found[metric])} {phrases.interval(found[metric])}",
            METRICS[metric].meaning,
        )
        for metric in METRICS
        if metric in found
    )
    return tables.Table(columns=("metric", "value", "meaning"), rows=tuple(rows))


def _data(inputs: ReportInputs) -> tables.Table:
    rows = (
        _row(table.name, f"{table.num_rows:,}", table.licence, table.origin, f"`{table.sha256[:12]}…`")
        for table in inputs.tables
    )
    return tables.Table(columns=("table", "rows", "licence", "origin", "SHA-256"), rows=tuple(rows))


def _row(*texts: str) -> tables.Row:
    return tables.Row(cells=tuple(tables.Cell(text=text) for text in texts))
