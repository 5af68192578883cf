"""Made-up evidence of every shape, for tests of what is told about it: no model runs and nothing is measured."""

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from imaginary import make_history

from stillhouse.contract import (
    METRICS,
    AnswerCounts,
    Comparison,
    Decision,
    Diversity,
    Estimate,
    EvaluationSummary,
    FilterCount,
    IntegrityCheck,
    LengthBin,
    Metric,
    ModelScores,
    ModelTiming,
    RatingFacts,
    RuleOutcome,
    SuiteSummary,
    SynthesisReport,
    TermsFinding,
    TermsReport,
    Timings,
    TraceAudit,
)
from stillhouse.evaluation import ReportInputs, TableFacts, TaskCost
from stillhouse.recipe import ApiConfig, SignOff, TracesConfig, load_recipe
from stillhouse.recipe.data import SuiteKind

ROOT = Path(__file__).parents[1]

MODELS = ("teacher", "kd", "sft", "start", "champion")
SKILL = {"teacher": 0.0, "kd": 0.019, "unfiltered": 0.024, "sft": 0.031, "start": 0.33, "champion": 0.026}
"""How much worse than the teacher a model is; what compression made is like ``kd``."""

CLASSIFIED: Mapping[str, tuple[SuiteKind, float, int]] = {
    "movies": ("in-domain", 0.871, 1591),
    "tweets": ("shifted-domain", 0.802, 1500),
    "amazon": ("shifted-domain", 0.774, 1500),
    "nyt": ("shifted-domain", 0.712, 1500),
    "negations": ("challenge", 0.655, 420),
    "movies-typos": ("perturbed", 0.818, 1591),
    "recipes": ("out-of-scope", 0.861, 800),
}
"""By suite: kind, the teacher's figure, items."""

LANGUAGE: Mapping[str, tuple[SuiteKind, float, int]] = {
    "dialogues": ("in-domain", 3.062, 420),
    "letters": ("shifted-domain", 3.391, 300),
}

PROBLEMS: Mapping[str, tuple[SuiteKind, float, int]] = {
    "sums": ("in-domain", 0.612, 600),
    "longer-sums": ("shifted-domain", 0.343, 400),
}

TIMINGS = Timings(
    threads=2,
    num_items=100,
    models={
        name: ModelTiming(
            parameters=size, num_bytes=4 * size, latency_p50_ms=ms, latency_p95_ms=1.4 * ms, throughput=3000 / ms
        )
        for name, size, ms in (
            ("teacher", 22_700_000, 8.41),
            ("kd", 17_400_000, 4.62),
            ("unfiltered", 17_400_000, 4.65),
            ("sft", 17_400_000, 4.66),
            ("start", 17_400_000, 4.64),
            ("champion", 17_400_000, 4.71),
        )
    },
)


def estimate(value: float, half: float = 0.02, n: int = 1500) -> Estimate:
    """Return a figure with a symmetric interval."""
    rounded = [round(x, 6) for x in (value, value - half, value + half)]
    return Estimate(value=rounded[0], low=rounded[1], high=rounded[2], standard_error=round(half / 1.96, 6), n=n)


def classified() -> EvaluationSummary:
    """Return the summary of a classification run with suites of every kind but ``benchmark``."""
    return make_summary(CLASSIFIED, "accuracy")


def language() -> EvaluationSummary:
    """Return the summary of a language model's run: a loss, and nothing to keep a share of."""
    return make_summary(LANGUAGE, "nll", models=("teacher", "kd", "sft", "start"))


def written() -> EvaluationSummary:
    """Return the summary of a run whose teacher is a server that wrote reasoning, judged by its students' answers."""
    return make_summary(PROBLEMS, "exact_match", models=("kd", "unfiltered", "sft", "start"))


def make_summary(
    suites: Mapping[str, tuple[SuiteKind, float, int]], metric: Metric, *, models: tuple[str, ...] = MODELS
) -> EvaluationSummary:
    """Return a summary in which the differences between suites and models are those of the tables above."""
    found = tuple(_suite(name, kind, teacher, n, metric, models) for name, (kind, teacher, n) in suites.items())
    home = found[0]
    away = [suite for suite in found[1:] if suite.kind != "out-of-scope"]
    sign = 1 if METRICS[metric].better == "higher" else -1

    def drop(model: str, suite: SuiteSummary) -> Estimate:
        here, there = home.score(model), suite.score(model)
        assert here is not None
        assert there is not None
        return estimate(sign * (here.value - there.value), 0.026, suite.num_items)

    def kept(suite: SuiteSummary) -> Estimate:
        mine, teacher = suite.score("kd"), suite.score("teacher")
        assert mine is not None
        assert teacher is not None
        return estimate(mine.value / teacher.value, 0.021, suite.num_items)

    has_teacher = "teacher" in models
    higher = has_teacher and METRICS[metric].better == "higher"
    shares = [suite for suite in found if higher and suite.kind != "out-of-scope"]
    drops = {model: {suite.name: drop(model, suite) for suite in away} for model in models}
    return EvaluationSummary(
        confidence=0.95,
        resamples=2000,
        candidate="kd",
        models=models,
        suites=found,
        comparisons=tuple(_comparison(suite, baseline) for suite in found for baseline in models if baseline != "kd"),
        retention={suite.name: kept(suite) for suite in shares},
        mean_retention=estimate(float(np.mean([kept(suite).value for suite in shares])), 0.011) if shares else None,
        drops=drops,
        excess_drops={
            suite.name: estimate(drops["kd"][suite.name].value - drops["teacher"][suite.name].value, 0.014)
            for suite in away
            if has_teacher
        },
    )


def _suite(name: str, kind: SuiteKind, teacher: float, n: int, metric: Metric, models: tuple[str, ...]) -> SuiteSummary:
    own = "auroc_confidence" if kind == "out-of-scope" else metric
    grouped = kind == "challenge"
    return SuiteSummary(
        name=name,
        kind=kind,
        metric=own,
        num_items=n,
        num_groups=n // 6 if grouped else n,
        items_sha256="1" * 64,
        models={model: _scores(name, kind, teacher, n, metric, model) for model in models},
    )


def _scores(suite: str, kind: str, teacher: float, n: int, metric: Metric, model: str) -> ModelScores:
    worse = SKILL.get(model, SKILL["kd"]) * (1.0 if kind == "in-domain" else 1.4 + len(suite) / 20)
    half = 0.9 / n**0.5
    if kind == "out-of-scope":
        quality = {
            "auroc_confidence": estimate(teacher - worse, half, n),
            "fpr95_confidence": estimate(0.42 + worse, half, n),
            "auroc_energy": estimate(teacher + 0.02 - worse, half, n),
            "fpr95_energy": estimate(0.37 + worse, half, n),
        }
    elif metric == "nll":
        loss = teacher + 6 * worse
        quality = {
            "nll": estimate(loss, half, n),
            "perplexity": estimate(float(np.exp(loss)), float(np.exp(loss)) * half, n),
            "bits_per_byte": estimate(loss / 3.1, half / 3.1, n),
            "accuracy": estimate(0.42 - worse, half / 4, n),
        }
    elif metric == "exact_match":
        quality = {
            "nll": estimate(2.9 + 6 * worse, half, n),
            "perplexity": estimate(float(np.exp(2.9 + 6 * worse)), half, n),
            "exact_match": estimate(max(teacher - worse, 0.02), half / 4, n),
            "pass_at_1": estimate(max(teacher - 0.04 - worse, 0.01), half / 4, n),
        }
    else:
        quality = {
            "accuracy": estimate(teacher - worse, half, n),
            "macro_f1": estimate(teacher - worse - 0.006, half, n),
            "ece": estimate(0.031 + worse / 2, 0.012, n),
            "ece_scaled": estimate(0.014 + worse / 4, 0.008, n),
            "brier": estimate(0.19 + worse, 0.011, n),
            "nll": estimate(0.31 + 2 * worse, 0.024, n),
        }
        if model != "teacher":
            quality |= {
                "agreement": estimate(0.93 - worse, 0.012, n),
                "kl": estimate(0.05 + worse, 0.006, n),
                "overlap": estimate(0.91 - worse, 0.009, n),
            }
    labelled = metric == "accuracy" and kind != "out-of-scope"
    recalls = {
        "negative": estimate(teacher - 0.03 - worse, 0.03, n // 2),
        "positive": estimate(teacher + 0.03 - worse, 0.02, n // 2),
    }
    return ModelScores(
        metrics=quality,
        per_label=recalls if labelled else {},
        temperature=1.31 if labelled else None,
        truncated=3 if kind == "in-domain" else 0,
    )


def _comparison(suite: SuiteSummary, baseline: str) -> Comparison:
    mine, other = suite.score("kd"), suite.score(baseline)
    assert mine is not None
    assert other is not None
    difference = estimate(mine.value - other.value, 0.013, suite.num_items)
    p = 0.5 ** (1 + 300 * abs(difference.value))
    flips = suite.metric in ("accuracy", "exact_match")
    return Comparison(
        suite=suite.name,
        metric=suite.metric,
        model="kd",
        baseline=baseline,
        difference=difference,
        p_value=p,
        p_adjusted=min(1.0, 4 * p),
        flips_lost=estimate(0.041, 0.01, suite.num_items) if flips else None,
        flips_won=estimate(0.032, 0.009, suite.num_items) if flips else None,
    )


def make_decision(summary: EvaluationSummary) -> Decision:
    """Return a rejection with rules of every outcome and integrity checks."""
    home = summary.suites[0]
    quality, versus = home.score("kd"), summary.comparison(home.name, "start")
    assert quality is not None
    assert versus is not None
    away = list(summary.drops["kd"])[-1]
    rules = (
        RuleOutcome(rule="learned-something", requirement=f"beats its start by more than 0.02 on {home.name}",
                    outcome="pass", value=versus.gain, bound=0.02, reason="even the lower bound exceeds 0.02"),
        RuleOutcome(rule="no-regression", requirement=f"not worse than the champion on {home.name} by more than 0.03",
                    outcome="inconclusive", value=estimate(-0.011, 0.024, 300), bound=-0.03, power=0.41,
                    reason="the interval holds the margin: 300 items are too few, some 900 would settle it"),
        RuleOutcome(rule="good-enough", requirement=f"{home.metric} on {home.name} is at least 0.99", outcome="fail",
                    value=quality, bound=0.99, reason="the upper bound is below 0.99"),
        RuleOutcome(rule="ood", requirement=f"from {home.name} to {away} loses at most 0.05 more than the teacher",
                    outcome="pass", value=(summary.excess_drops or summary.drops["kd"])[away], bound=0.05, power=0.93,
                    reason="the upper bound is below 0.05"),
    )  # fmt: skip
    checks = (
        IntegrityCheck(name="leakage", outcome="pass", detail="0 of 7,422 training texts occur in a test set"),
        IntegrityCheck(name="contamination", outcome="warn", detail="12 training texts are nearly in tweets: removed"),
    )
    return Decision(
        verdict="reject",
        candidate="kd",
        model_sha256="a" * 64,
        champion_sha256="c" * 64,
        policy="tests",
        policy_sha256="b" * 64,
        evidence_sha256="e" * 64,
        checks=checks,
        rules=rules,
        notes=("distillation brought nothing on tweets: kd − sft = +0.005 [−0.010, +0.020]",),
    )


def make_classified_records(summary: EvaluationSummary, *, num_items: int = 600) -> pa.Table:
    """Return what the reliability diagram reads: the columns of classification records that matter to it."""
    rng = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {name: [] for name in ("model", "suite", "item_id", "correct", "probabilities")}
    for model in summary.models:
        sure_N = 0.5 + 0.5 * rng.beta(2, 1, num_items)
        correct_N = rng.random(num_items) < sure_N - (0.1 if model == "start" else 0.03)
        columns["model"] += [model] * num_items
        columns["suite"] += [summary.suites[0].name] * num_items
        columns["item_id"] += [f"i{i}" for i in range(num_items)]
        columns["correct"] += correct_N.tolist()
        columns["probabilities"] += np.stack([sure_N, 1 - sure_N], axis=1).tolist()
    return pa.table(columns)


def make_terms() -> TermsReport:
    """Return what the terms policy said about two teachers."""
    findings = (
        TermsFinding(teacher="large-1 at teacher.example", role="teacher", licence="Own terms 1.0", provider="example",
                     use="internal", ruling="needs-sign-off", rule="No models that compete with the provider's.",
                     citation="https://teacher.example/terms", read_on=date(2026, 11, 20),
                     sign_off=SignOff(by="A. Counsel", reference="LEGAL-17", on=date(2026, 11, 21))),
        TermsFinding(teacher="elder-2", role="inherited", licence="apache-2.0", use="internal", ruling="allowed",
                     rule="Any use, with notices kept.", citation="https://www.apache.org/licenses/LICENSE-2.0"),
    )  # fmt: skip
    return TermsReport(policy="terms", policy_sha256="7" * 64, findings=findings)


def make_synthesis(**changes: Any) -> SynthesisReport:
    """Return what became of traces that a server wrote, with every part that a report may have."""
    bins = ((1, 40, 0.71, 0.99, 900), (41, 80, 0.58, 0.97, 1200), (81, 160, 0.41, 0.95, 700), (161, 400, 0.2, 0.93, 90))
    audit = TraceAudit(
        traces=2890,
        checked=2510,
        steps=9130,
        wrong_steps=331,
        accuracy=estimate(0.561, 0.031, 2890),
        right_with_wrong_steps=estimate(0.047, 0.012, 1400),
        first_wrong=(92, 71, 40, 22, 9, 4, 1, 3),
        by_length=tuple(
            LengthBin(low=low, high=high, accuracy=estimate(right, 0.9 / n**0.5, n),
                      step_accuracy=estimate(steps, 0.3 / n**0.5, n))
            for low, high, right, steps, n in bins
        ),
        per_step=0.9637,
    )  # fmt: skip
    given: dict[str, Any] = {
        "kind": "traces",
        "teacher": "large-1 at teacher.example",
        "counts": AnswerCounts(prompts=3000, refused=12, truncated=71, empty=3,
                               prompt_tokens=410_000, answer_tokens=302_511, cost=1.8374),
        "filters": (
            FilterCount(name="empty", seen=3000, removed=3),
            FilterCount(name="truncated", seen=2997, removed=71),
            FilterCount(name="verifier", seen=2926, removed=1284),
            FilterCount(name="duplicates", seen=1642, removed=201),
        ),
        "kept": 1441,
        "rows": {"train": 1441, "unfiltered": 1512},
        "tokens": {"train": 150_312, "unfiltered": 150_290},
        "diversity": {
            "train": Diversity(texts=1441, distinct_1=0.412, distinct_2=0.731, self_bleu=0.347, near_duplicates=0.0),
            "unfiltered": Diversity(texts=1512, distinct_1=0.398, distinct_2=0.702, self_bleu=0.381,
                                    near_duplicates=0.067),
        },
        "rating": RatingFacts(rated=400, unreadable=7, mean=3.21, standard_deviation=1.04, rank_correlation=0.43,
                              mean_kept=3.91),
        "audit": audit,
    }  # fmt: skip
    return SynthesisReport(**given | changes)


def make_inputs(summary: EvaluationSummary, **changes: Any) -> ReportInputs:
    """Return everything on a page about ``summary``."""
    is_language = summary.suites[0].metric == "nll"
    recipe = load_recipe(ROOT / "dags" / "recipes" / "quickstart.yaml")
    if not summary.has_teacher:
        is_language = True
        api = ApiConfig(base_url="https://teacher.example/v1", model="large-1", key="env:TEACHER_KEY")
        teacher = recipe.teacher.model_copy(update={"source": None, "api": api})
        recipe = recipe.model_copy(update={"teacher": teacher, "synthesis": TracesConfig()})
    if is_language:
        data = recipe.data.model_copy(update={"labels": ()})
        recipe = recipe.model_copy(update={"task": "causal-lm", "data": data})
    given: dict[str, Any] = {
        "recipe": recipe,
        "decision": make_decision(summary),
        "summary": summary,
        "timings": TIMINGS,
        "records": pa.table({"model": ["kd"], "loss": [1.0]}) if is_language else make_classified_records(summary),
        "histories": {
            "kd": make_history("ce", "kd", "hidden", held_out=is_language),
            "sft": make_history("ce", held_out=is_language),
        },
        "tables": [TableFacts(name="train", num_rows=7422, sha256="d" * 64, licence="MIT", origin="a <b>t|st</b>")],
        "checks": [
            SimpleNamespace(table="train", requirement="labels are balanced", severity="warning", success=False,
                            message="train: the rarest label has 3 %"),
            SimpleNamespace(table="train", requirement="no nulls", severity="critical", success=True, message=""),
        ],
        "data_docs": "data-docs/index.html",
        "digests": {"records": "f" * 64},
        "terms": make_terms(),
        "synthesis": None if summary.has_teacher else make_synthesis(),
        "costs": {
            "validate": TaskCost(seconds=6.3, cpu_seconds=7.0, peak_memory_bytes=612_000_000),
            "distill-kd": TaskCost(seconds=82.0, cpu_seconds=160.0, peak_memory_bytes=1_912_000_000),
            "evaluate": TaskCost(seconds=4000.0, cpu_seconds=7900.0, peak_memory_bytes=1_211_000_000),
        },
        "software": "Stillhouse 0.1.0",
    }  # fmt: skip
    return ReportInputs(**given | changes)
