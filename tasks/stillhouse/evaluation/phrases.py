"""Figures and verdicts in words: shared by the page, the cards and the terminal. All wording of results lies here."""

from stillhouse.contract import (
    METRICS,
    Decision,
    Estimate,
    EvaluationSummary,
    Metric,
    RuleOutcome,
    SuiteSummary,
    Timings,
)

MODEL_TITLES = {
    "teacher": "teacher",
    "kd": "student (kd)",
    "unfiltered": "student (unfiltered)",
    "sft": "student (sft)",
    "start": "student before distillation",
    "champion": "champion in service",
}

MODEL_MEANINGS = {
    "teacher": "the model whose knowledge is passed on",
    "kd": "learned from the teacher",
    "unfiltered": "control: same student, as much of what the teacher wrote, unchosen",
    "sft": "control: same student, trained on the collected data without the teacher",
    "start": "the same student, not trained further",
    "champion": "the model in service, scored again today",
}

KIND_TITLES = {
    "in-domain": "in-domain",
    "shifted-domain": "shifted domain",
    "challenge": "challenge set",
    "out-of-scope": "out of scope",
    "perturbed": "perturbed",
    "benchmark": "benchmark",
}

OUTCOME_TITLES = {"pass": "pass", "fail": "fail", "inconclusive": "inconclusive", "warn": "warning"}
OUTCOME_SIGNS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "warn": "!"}
VERDICT_TITLES = {"promote": "Promote", "reject": "Reject", "inconclusive": "Inconclusive"}

CHECK_MEANINGS = {
    "leakage": "no text is both learned from and judged by",
    "contamination": "no text is nearly the same in both",
    "coverage": "what is learned from is like what will be met",
    "terms": "the teachers' terms allow to learn from them",
    "canary": "what is kept of the teacher is what it says",
    "synthesis": "the teacher wrote enough that is fit to learn from",
}

TERM_TITLES = {
    "loss": "Loss that is minimised",
    "ce": "Cross-entropy with the labels",
    "kd": "Divergence from the teacher, times T²",
    "hidden": "Hidden states: distance to the teacher's",
    "attention": "Attention maps: distance to the teacher's",
    "qkv-relation": "Relations of queries, keys and values",
    "rkd": "Distances and angles among documents",
    "cka": "Kernel alignment of documents",
    "similarity": "Similarities among documents",
}
"""By term of the loss, in the order of the plots."""

HELD_OUT_TITLES = {"loss": "Loss on held-out texts", "perplexity": "Perplexity on held-out texts"}

DIGITS: dict[Metric, int] = {"perplexity": 2}
UNITS: dict[Metric, str] = {"nll": "nats", "kl": "nats"}
NOTHING = "—"


def headline(decision: Decision) -> str:
    """Put the verdict into one sentence."""
    failed = [rule for rule in decision.rules if rule.outcome == "fail"]
    open_ = [rule for rule in decision.rules if rule.outcome == "inconclusive"]
    total = len(decision.rules)
    if decision.verdict == "promote":
        return f"The student {decision.candidate} meets all {total} requirements of policy {decision.policy}."
    if decision.verdict == "reject" and failed:
        return (
            f"The student {decision.candidate} misses {len(failed)} of {total} requirements of policy "
            f"{decision.policy}: {_first(failed)}."
        )
    if open_:
        return (
            f"The evidence can't settle {len(open_)} of {total} requirements of policy {decision.policy}: "
            f"{_first(open_)}."
        )
    return f"The verdict on student {decision.candidate} by policy {decision.policy} is: {decision.verdict}."


def meaning(model: str, summary: EvaluationSummary) -> str:
    """Say what a model is, and whether it is the one that asks for promotion."""
    said = MODEL_MEANINGS.get(model, "made from the student by compression")
    return f"{said}: the candidate" if model == summary.candidate else said


def worst_kept(summary: EvaluationSummary) -> tuple[str, Estimate] | None:
    """Return the suite on which the candidate keeps least of the teacher's skill, and how much; None without any."""
    return min(summary.retention.items(), key=lambda item: (item[1].value, item[0]), default=None)


def gaps(summary: EvaluationSummary) -> dict[str, Estimate]:
    """Return the candidate's difference to the teacher by suite, where there is no share to keep, as with a loss.

    Out-of-scope suites are not among them: what is judged there is doubt, not skill.
    """
    return {
        suite.name: found.difference
        for suite in summary.suites
        if suite.name not in summary.retention
        and suite.kind != "out-of-scope"
        and (found := summary.comparison(suite.name, "teacher"))
    }


def worst_gap(summary: EvaluationSummary) -> tuple[str, Estimate] | None:
    """Return the suite on which the candidate is furthest behind the teacher, and its difference to the teacher."""

    def behind(item: tuple[str, Estimate]) -> tuple[float, str]:
        higher = METRICS[_metric_of(summary, item[0])].better == "higher"
        return (item[1].value if higher else -item[1].value), item[0]

    return min(gaps(summary).items(), key=behind, default=None)


def worst_sentence(summary: EvaluationSummary) -> str:
    """Name the suite on which the candidate stands worst against its teacher; empty if nothing was compared."""
    kept, gap = worst_kept(summary), worst_gap(summary)
    if kept:
        where = "least on" if len(summary.retention) > 1 else "on"
        return f"It keeps {where} {kept[0]}: {percent(kept[1])} {percent_interval(kept[1])} of the teacher's."
    if gap:
        metric = _metric_of(summary, gap[0])
        side = "ahead" if (gap[1].value > 0) == (METRICS[metric].better == "higher") else "behind"
        if len(gaps(summary)) > 1:
            side = "least ahead" if side == "ahead" else "furthest behind"
        figures = f"{metric_title(metric)} {signed(gap[1])} {interval(gap[1])}"
        return f"It is {side} on {gap[0]}: {figures} against the teacher's."
    return ""


def drop_sentence(summary: EvaluationSummary, suite: SuiteSummary, drop: Estimate) -> str:
    """Say how much worse the candidate is away from home."""
    home, digits = summary.suites[0], DIGITS.get(suite.metric, 3)
    lower = (suite.better == "higher") == (drop.value >= 0)
    size_of_it = half_width(drop if drop.value >= 0 else drop.negated(), digits)
    change = f"{METRICS[suite.metric].title} {size_of_it} {'lower' if lower else 'higher'}"
    return f"On {suite.name} ({KIND_TITLES[suite.kind]}): {change} than on {home.name}."


def metric_title(metric: Metric) -> str:
    """Return a metric's name with its unit: ``loss (nats)``."""
    unit = UNITS.get(metric)
    return f"{METRICS[metric].title} ({unit})" if unit else METRICS[metric].title


def kept_title(summary: EvaluationSummary, suite: str) -> str:
    """Say what `kept_by` writes for this suite: a share of the teacher's figure, or a difference to it."""
    return "kept" if suite in summary.retention else f"{METRICS[_metric_of(summary, suite)].title} minus teacher's"


def kept_by(summary: EvaluationSummary, suite: str, model: str) -> str:
    """Write how ``model`` stands to the teacher: the share of its figure, or, for a loss, the difference.

    Only the candidate's figure has an interval, since only the candidate is compared item by item.
    """
    found = summary.suite(suite)
    mine, teacher = (found.score(name) if found else None for name in (model, "teacher"))
    if found is None or mine is None or teacher is None:
        return NOTHING
    if suite in summary.retention:
        if model == summary.candidate:
            return half_width_percent(summary.retention[suite])
        return f"{100 * mine.value / teacher.value:.1f} %" if teacher.value else NOTHING
    if model == "teacher":
        return NOTHING
    versus = summary.comparison(suite, "teacher") if model == summary.candidate else None
    digits = DIGITS.get(found.metric, 3)
    if versus:
        return f"{signed(versus.difference, digits)} ±{_half(versus.difference):.{digits}f}"
    return f"{mine.value - teacher.value:+.{digits}f}".replace("-", "−")


def half_width(estimate: Estimate, digits: int = 3) -> str:
    """Write a figure with the wider half of its interval: ``0.857 ±0.017``."""
    return f"{figure(estimate, digits)} ±{_half(estimate):.{digits}f}"


def half_width_percent(estimate: Estimate) -> str:
    """Write a share as a percentage with the wider half of its interval: ``97.8 ±1.7 %``."""
    return f"{100 * estimate.value:.1f} ±{100 * _half(estimate):.1f} %"


def interval(estimate: Estimate, digits: int = 3) -> str:
    """Write the bounds: ``[0.839, 0.873]``, with a real minus sign."""
    return f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]".replace("-", "−")


def figure(estimate: Estimate, digits: int = 3) -> str:
    """Write the figure alone, with a real minus sign."""
    return f"{estimate.value:.{digits}f}".replace("-", "−")


def signed(estimate: Estimate, digits: int = 3) -> str:
    """Write a difference with its sign."""
    return f"{estimate.value:+.{digits}f}".replace("-", "−")


def percent(estimate: Estimate) -> str:
    """Write a share as a percentage."""
    return f"{100 * estimate.value:.1f} %".replace("-", "−")


def percent_interval(estimate: Estimate) -> str:
    """Write the bounds of a share as percentages."""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]".replace("-", "−")


def number(value: float) -> str:
    """Write a given number as short as it is, with a real minus sign."""
    return f"{value:g}".replace("-", "−")


def p_value(p: float) -> str:
    """Write a p-value: ``p = 0.03`` or ``p < 0.0001``."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def size(num_bytes: int) -> str:
    """Write a size in megabytes of 10^6 bytes."""
    return f"{num_bytes / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Write a time span: ``8.4 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02} min" if hours else f"{minutes} min {rest:02} s"


def timed_on(timings: Timings) -> str:
    """Write where speeds were measured: ``2 threads``, or the kind of accelerator."""
    if timings.device != "cpu":
        return f"an accelerator ({timings.device})"
    return f"{timings.threads} thread" + ("" if timings.threads == 1 else "s")


def money(amount: float) -> str:
    """Write an amount in the currency of the deployment, which has no name here; small ones with more digits."""
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.2g}"


def _metric_of(summary: EvaluationSummary, suite: str) -> Metric:
    found = summary.suite(suite)
    return found.metric if found else "accuracy"


def _half(estimate: Estimate) -> float:
    return max(estimate.high - estimate.value, estimate.value - estimate.low)


def _first(rules: list[RuleOutcome]) -> str:
    return rules[0].requirement + (f", and {len(rules) - 1} more" if len(rules) > 1 else "")
