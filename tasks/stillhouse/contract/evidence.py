"""What an evaluation found, what the gate made of it, and what a promotion did: the files that reviewers read."""

from typing import Literal

from pydantic import Field

from stillhouse.contract.canonical import canonical_json, sha256_of
from stillhouse.recipe import Config, Sha256


class Estimate(Config):
    """A figure that never travels without its uncertainty."""

    value: float
    low: float
    high: float
    """Bounds of the interval at the summary's confidence."""
    standard_error: float = Field(ge=0)
    n: int = Field(ge=1)
    """Items behind the figure."""


class ModelScores(Config):
    """One model on one suite."""

    accuracy: Estimate
    macro_f1: Estimate
    """Unweighted mean of the F1 of every label that occurs in the suite."""
    ece: Estimate
    """Expected calibration error, equal-mass bins."""
    nll: Estimate
    """Mean negative log-likelihood of the labels, in nats."""
    agreement: Estimate | None = None
    """Share of items on which the model predicts what the teacher predicts; None for the teacher."""
    truncated: int = Field(ge=0)
    """Items longer than the model was given to read."""


class SuiteSummary(Config):
    """All models on one frozen set of items."""

    name: str
    kind: Literal["in-domain", "shifted-domain"]
    num_items: int = Field(ge=1)
    items_sha256: Sha256
    """Digest of the frozen items."""
    models: dict[str, ModelScores]


class Comparison(Config):
    """Two models on the same items."""

    suite: str
    metric: Literal["accuracy"] = "accuracy"
    model: str
    baseline: str
    difference: Estimate
    """Model minus baseline, paired by item."""
    p_value: float = Field(ge=0, le=1)
    """Exact McNemar test that the two are equally often right."""


class EvaluationSummary(Config):
    """Everything that the gate and the report know about quality. Recomputable from the records."""

    schema_id: Literal["stillhouse/evaluation/1"] = "stillhouse/evaluation/1"
    confidence: float
    resamples: int
    candidate: str
    """Name of the student that asks for promotion."""
    models: tuple[str, ...]
    """``teacher``, the arms (``kd``, ``sft``), ``start`` (the student before distillation), ``champion`` if any."""
    suites: tuple[SuiteSummary, ...] = Field(min_length=1)
    """The in-domain suite first."""
    comparisons: tuple[Comparison, ...]
    """On every suite: candidate against ``teacher``, ``start``, and ``sft`` and ``champion`` where they exist."""
    retention: dict[str, Estimate]
    """By suite: the candidate's accuracy divided by the teacher's, paired by item."""
    drops: dict[str, dict[str, Estimate]]
    """By model, then by shifted suite: in-domain accuracy minus the accuracy there."""
    excess_drops: dict[str, Estimate]
    """By shifted suite: the candidate's drop minus the teacher's own, paired by item within each suite."""

    def suite(self, name: str) -> SuiteSummary | None:
        """Return the suite of that name, if it was run."""
        return next((suite for suite in self.suites if suite.name == name), None)

    def comparison(self, suite: str, baseline: str) -> Comparison | None:
        """Return the candidate's comparison with ``baseline`` on ``suite``, if both were measured."""
        return next((c for c in self.comparisons if c.suite == suite and c.baseline == baseline), None)


class ModelTiming(Config):
    """Cost of one model, measured on one machine beside the others."""

    parameters: int = Field(ge=1)
    num_bytes: int = Field(ge=1)
    """Of the weights on disk."""
    latency_p50_ms: float = Field(gt=0)
    latency_p95_ms: float = Field(gt=0)
    """Per text at batch 1, tokenization included, warm."""
    throughput: float = Field(gt=0)
    """Texts per second at the recipe's evaluation batch size."""


class Timings(Config):
    """Sizes and speeds. Kept apart from the summary: they depend on the machine and on the moment."""

    schema_id: Literal["stillhouse/timings/1"] = "stillhouse/timings/1"
    threads: int = Field(ge=1)
    num_items: int = Field(ge=1)
    models: dict[str, ModelTiming]


Verdict = Literal["promote", "reject", "inconclusive"]


class RuleOutcome(Config):
    """What one rule of the policy found."""

    rule: str
    """The rule's name in the policy."""
    requirement: str
    """What it asks for, in words and numbers."""
    outcome: Literal["pass", "fail", "inconclusive"]
    value: Estimate | None = None
    """The figure that it judged; None if the evidence lacks it, which fails."""
    bound: float | None = None
    reason: str
    """Why it came out like this, in one line."""


class Decision(Config):
    """What the gate decided, on what grounds. An approval is bound to its digest."""

    schema_id: Literal["stillhouse/decision/1"] = "stillhouse/decision/1"
    verdict: Verdict
    candidate: str
    model_sha256: Sha256
    """Digest of the candidate's model folder."""
    champion_sha256: Sha256 | None
    """Digest of the champion that the candidate was compared with; None if there was none."""
    policy: str
    """Name of the policy."""
    policy_sha256: Sha256
    evidence_sha256: Sha256
    """Digest of the evaluation summary."""
    rules: tuple[RuleOutcome, ...]
    notes: tuple[str, ...] = ()
    """What a reviewer must know although no rule asks, such as that distillation brought nothing."""

    @property
    def digest(self) -> str:
        """SHA-256 of the decision's canonical JSON."""
        return sha256_of(canonical_json(self))


class Promotion(Config):
    """What a promotion did, as read back from the registry."""

    schema_id: Literal["stillhouse/promotion/1"] = "stillhouse/promotion/1"
    model: str
    """Name of the registered model."""
    version: int = Field(ge=1)
    model_sha256: Sha256
    aliases: dict[str, int]
    """Version behind each alias, afterwards."""
    champion_before: int | None
    """Version that was champion until then; None if there was none."""
    ledger_sequence: int = Field(ge=1)
    ledger_sha256: Sha256
    """Digest of the ledger's entry."""
    already_champion: bool
    """The model was champion before this was asked for; nothing was appended."""
