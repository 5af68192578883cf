# ruff: noqa: RUF009 - estimates are frozen
"""Evidence for tests of the gate: it meets every rule of `RULES`, but for what a test changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stillhouse.contract import (
    METRICS,
    Comparison,
    Decision,
    Estimate,
    EvaluationSummary,
    IntegrityCheck,
    Metric,
    ModelScores,
    ModelTiming,
    SuiteSummary,
    Timings,
)
from stillhouse.promotion.gate import decide
from stillhouse.promotion.policy import Policy
from stillhouse.recipe.data import SuiteKind

MODEL, CHAMPION, EVIDENCE, TIMINGS = (letter * 64 for letter in "ace1")

RULES: dict[str, dict[str, Any]] = {
    "floor": {"kind": "bound", "metric": "accuracy", "at_least": 0.7, "suites": "every"},
    "ceiling": {"kind": "bound", "metric": "ece", "at_most": 0.1},
    "retention": {"kind": "retention", "floor": 0.9, "suites": "every"},
    "mean-retention": {"kind": "retention", "floor": 0.9, "across": "mean"},
    "teacher-gap": {"kind": "teacher-gap", "ceiling": 0.05},
    "beats-start": {"kind": "beats-start", "margin": 0.02},
    "beats-control": {"kind": "beats-control", "margin": -0.02},
    "not-worse-than-champion": {"kind": "not-worse-than-champion", "margin": 0.02},
    "better-than-champion": {"kind": "better-than-champion"},
    "ood-drop": {"kind": "ood-drop", "margin": 0.08},
    "slices": {"kind": "slices", "items": 100, "margin": 0.05},
    "flips": {"kind": "flips", "against": "teacher", "at_most": 0.1},
    "churn": {"kind": "flips", "against": "champion", "at_most": 0.1},
    "size": {"kind": "budget", "measure": "num_bytes", "at_most": 1.0, "relative_to": "teacher"},
    "latency": {"kind": "budget", "measure": "latency_p95_ms", "at_most": 1.1, "relative_to": "champion"},
    "speed": {"kind": "budget", "measure": "throughput", "at_least": 100.0},
    "integrity": {"kind": "integrity", "checks": ["leakage", "contamination"]},
    "minimum-items": {"kind": "minimum-items", "items": 100},
    "minimum-power": {"kind": "minimum-power", "margin": 0.02},
}
"""One rule or more of each kind, by name."""


def estimate(value: float, half: float = 0.01, n: int = 1500) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, standard_error=half / 2, n=n)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the evidence says; comparisons are gains, so more is better. None leaves a figure out."""

    accuracy: Estimate | None = estimate(0.85)
    ece: Estimate | None = estimate(0.05)
    retention: Estimate | None = estimate(0.98)
    mean_retention: Estimate | None = estimate(0.98)
    teacher: Estimate | None = estimate(-0.01)
    start: Estimate | None = estimate(0.3)
    sft: Estimate | None = estimate(0.0)
    unfiltered: Estimate | None = None
    champion: Estimate | None = estimate(0.02)
    excess_drop: Estimate | None = estimate(0.02)
    lost: Estimate | None = estimate(0.05)
    churn: Estimate | None = estimate(0.05)
    slice: Estimate | None = estimate(0.85, 0.02, 200)
    """Of the items of one genre: the more the better. The teacher has 0.86 ± 0.02."""
    num_bytes: int = 70
    """The teacher has 100."""
    latency: float = 10.0
    """The champion's is 10."""
    throughput: float = 300.0
    leakage: Literal["pass", "warn", "fail"] | None = "pass"
    num_items: int = 1500
    num_groups: int | None = None
    """By default every item stands for itself."""
    confidence: float = 0.95
    metric: Metric = "accuracy"
    """Of every suite."""
    suites: tuple[tuple[str, SuiteKind], ...] = (("movies", "in-domain"), ("tweets", "shifted-domain"))

    has_teacher: bool = True
    """False if it is a server: then nothing is relative to it."""

    @property
    def models(self) -> tuple[str, ...]:
        """All models; an arm or champion that was not compared was not there."""
        there = {
            "teacher": self.has_teacher,
            "kd": True,
            "unfiltered": self.unfiltered is not None,
            "sft": self.sft is not None,
            "start": True,
            "champion": self.champion is not None,
        }
        return tuple(model for model, is_there in there.items() if is_there)

    def summary(self) -> EvaluationSummary:
        """What the gate is given."""
        names = [name for name, _ in self.suites]
        return EvaluationSummary(
            confidence=self.confidence,
            resamples=2000,
            candidate="kd",
            models=self.models,
            suites=tuple(self._suite(name, kind) for name, kind in self.suites),
            comparisons=tuple(
                self._comparison(name, baseline, gain, lost)
                for name in names
                for baseline, gain, lost in (
                    ("teacher", self.teacher if self.has_teacher else None, self.lost),
                    ("start", self.start, None),
                    ("sft", self.sft, None),
                    ("unfiltered", self.unfiltered, None),
                    ("champion", self.champion, self.churn),
                )
                if gain
            ),
            retention=dict.fromkeys(names, self.retention) if self.retention and self.has_teacher else {},
            mean_retention=self.mean_retention if self.has_teacher else None,
            drops={},
            excess_drops=dict.fromkeys(names[1:], self.excess_drop) if self.excess_drop and self.has_teacher else {},
        )

    def timings(self) -> Timings:
        """Of all models."""
        base = ModelTiming(parameters=50, num_bytes=100, latency_p50_ms=9, latency_p95_ms=10, throughput=200)
        changed = {"num_bytes": self.num_bytes, "latency_p95_ms": self.latency, "throughput": self.throughput}
        models = dict.fromkeys(self.models, base) | {"kd": base.model_copy(update=changed)}
        return Timings(threads=1, num_items=100, models=models)

    def checks(self) -> list[IntegrityCheck]:
        """Leakage as given, contamination passed."""
        leakage = [IntegrityCheck(name="leakage", outcome=self.leakage, detail="of 9 texts")] if self.leakage else []
        return [*leakage, IntegrityCheck(name="contamination", outcome="pass", detail="0 of 9 texts")]

    def _suite(self, name: str, kind: SuiteKind) -> SuiteSummary:
        figures: dict[Metric, Estimate | None] = {"accuracy": self.accuracy, "ece": self.ece}
        own: dict[Metric, Estimate] = {metric: figure for metric, figure in figures.items() if figure}
        others: dict[Metric, Estimate] = {"accuracy": estimate(0.8), "ece": estimate(0.05)}
        slices = {m: self._slices(estimate(0.86, 0.02, 200)) for m in self.models} | {"kd": self._slices(self.slice)}
        return SuiteSummary(
            name=name,
            kind=kind,
            metric=self.metric,
            num_items=self.num_items,
            num_groups=self.num_groups or self.num_items,
            items_sha256="0" * 64,
            models={
                m: ModelScores(metrics=own if m == "kd" else others, per_slice=slices[m], truncated=0)
                for m in self.models
            },
        )

    def _slices(self, figure: Estimate | None) -> dict[str, Estimate]:
        if figure is None:
            return {}
        return {"genre=drama": figure if METRICS[self.metric].better == "higher" else figure.negated()}

    def _comparison(self, suite: str, baseline: str, gain: Estimate, lost: Estimate | None) -> Comparison:
        return Comparison(
            suite=suite,
            metric=self.metric,
            model="kd",
            baseline=baseline,
            difference=gain if METRICS[self.metric].better == "higher" else gain.negated(),
            p_value=0.5,
            p_adjusted=1.0,
            flips_lost=lost,
            flips_won=lost,
        )


GOOD = Facts()
FIRST = Facts(champion=None)


def make_policy(*rules: str | dict[str, Any]) -> Policy:
    """A policy of rules by name, or as given; of all rules by default."""
    named = [RULES[rule] | {"name": rule} if isinstance(rule, str) else {"name": "own"} | rule for rule in rules]
    harmless = {"kind": "minimum-items", "name": "harmless", "items": 1}
    return Policy.model_validate({"name": "tests", "description": "Of tests.", "rules": [*named, harmless]})


def judge(facts: Facts, *rules: str | dict[str, Any], summary: EvaluationSummary | None = None) -> Decision:
    """Let the rules judge the facts, or another summary of them."""
    return decide_by(make_policy(*(rules or RULES)), facts, summary or facts.summary(), facts.checks())


def decide_by(policy: Policy, facts: Facts, summary: EvaluationSummary, checks: Sequence[IntegrityCheck]) -> Decision:
    return decide(
        policy,
        summary,
        timings=facts.timings(),
        checks=checks,
        model_sha256=MODEL,
        champion_sha256=CHAMPION if facts.champion else None,
        evidence_sha256=EVIDENCE,
        timings_sha256=TIMINGS,
        has_teacher=facts.has_teacher,
    )
