"""What an evaluation found: figures that never travel without their uncertainty. Recomputable from the records."""

from math import hypot
from typing import Literal, NamedTuple

from pydantic import Field

from stillhouse.recipe import Config, Control, Sha256
from stillhouse.recipe.data import SuiteKind

CONTROLS: dict[Control, tuple[str, str]] = {
    "sft": ("distillation", "the teacher"),
    "unfiltered": ("the filter", "it"),
}
"""The arms that the candidate is set against: what the difference is due to, and what the control did without."""

Metric = Literal[
    "accuracy",
    "macro_f1",
    "ece",
    "ece_scaled",
    "brier",
    "nll",
    "agreement",
    "kl",
    "overlap",
    "perplexity",
    "bits_per_byte",
    "exact_match",
    "pass_at_1",
    "auroc_confidence",
    "fpr95_confidence",
    "auroc_energy",
    "fpr95_energy",
]


class MetricInfo(NamedTuple):
    """How a metric is called and read."""

    title: str
    better: Literal["higher", "lower"]
    meaning: str


METRICS: dict[Metric, MetricInfo] = {
    "accuracy": MetricInfo("accuracy", "higher", "share of items, or of next tokens, that are right"),
    "macro_f1": MetricInfo("macro-F1", "higher", "unweighted mean of the F1 of every label that occurs"),
    "ece": MetricInfo("ECE", "lower", "expected calibration error, bins of equal mass, corrected for its upward bias"),
    "ece_scaled": MetricInfo("ECE, scaled", "lower", "the same after one temperature was fitted to validation data"),
    "brier": MetricInfo("Brier score", "lower", "mean squared distance of the probabilities from the label"),
    "nll": MetricInfo("loss", "lower", "mean negative log-likelihood of the label, or of a token, in nats"),
    "agreement": MetricInfo("agreement", "higher", "share of items on which it predicts what the teacher predicts"),
    "kl": MetricInfo("KL", "lower", "mean KL(teacher || it) of their distributions, in nats"),
    "overlap": MetricInfo("overlap", "higher", "1 - total variation between its distribution and the teacher's, mean"),
    "perplexity": MetricInfo("perplexity", "lower", "e to the power of the loss"),
    "bits_per_byte": MetricInfo("bits per byte", "lower", "loss per byte of text, in bits: free of the tokenizer"),
    "exact_match": MetricInfo("exact match", "higher", "share of prompts whose greedy answer is right"),
    "pass_at_1": MetricInfo("pass@1", "higher", "share of sampled answers that are right"),
    "auroc_confidence": MetricInfo("AUROC", "higher", "chance that a foreign text gets less confidence"),
    "fpr95_confidence": MetricInfo("FPR95", "lower", "share of foreign texts let in with 95 % of those in scope"),
    "auroc_energy": MetricInfo("AUROC, energy", "higher", "the same by energy, the log-sum-exp of the logits"),
    "fpr95_energy": MetricInfo("FPR95, energy", "lower", "the same by energy"),
}


class Estimate(Config):
    """A figure that never travels without its uncertainty."""

    value: float
    low: float
    high: float
    """Bounds of the interval at the summary's confidence."""
    standard_error: float = Field(ge=0)
    n: int = Field(ge=1)
    """Items behind the figure."""

    def negated(self) -> "Estimate":
        """Return the same figure with its sign turned."""
        return Estimate(value=-self.value, low=-self.high, high=-self.low, standard_error=self.standard_error, n=self.n)

    def minus(self, other: "Estimate") -> "Estimate":
        """Return the difference to another figure, of which nothing is known but its interval.

        The distances to the bounds are added as squares, as if the two were independent (Newcombe 1998, method 10;
        MOVER: Zou & Donner 2008). Of two models on the same items this is wider than a paired interval, as long as what
        is hard for one is hard for the other.
        """
        value = self.value - other.value
        # Rounded, so that the last bits of a mathematical library change no digest.
        return Estimate(
            value=round(value, 9),
            low=round(value - hypot(self.value - self.low, other.high - other.value), 9),
            high=round(value + hypot(self.high - self.value, other.value - other.low), 9),
            standard_error=round(hypot(self.standard_error, other.standard_error), 9),
            n=min(self.n, other.n),
        )


class ModelScores(Config):
    """One model on one suite."""

    metrics: dict[Metric, Estimate]
    """What the suite's task has: see `METRICS`."""
    per_label: dict[str, Estimate] = {}
    """By label: the share of its items that are right (recall)."""
    per_slice: dict[str, Estimate] = {}
    """By slice, such as ``genre=drama``: the suite's own metric on the slice's items. Slices of few items, or all of
    one source, are left out, and out-of-scope suites have none."""
    temperature: float | None = Field(default=None, gt=0)
    """That was fitted to validation data for ``ece_scaled``."""
    truncated: int = Field(ge=0)
    """Items longer than the model was given to read."""


class SuiteSummary(Config):
    """All models on one frozen set of items."""

    name: str
    kind: SuiteKind
    metric: Metric
    """By which models are compared here."""
    num_items: int = Field(ge=1)
    num_groups: int = Field(ge=1)
    """Items that share a source count as one when uncertainty is computed; equal to ``num_items`` if none do."""
    items_sha256: Sha256
    """Digest of the frozen items."""
    models: dict[str, ModelScores]

    def score(self, model: str) -> Estimate | None:
        """Return the model's figure in the suite's own metric, if it was measured."""
        scores = self.models.get(model)
        return scores.metrics.get(self.metric) if scores else None

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which way the suite's own metric is better."""
        return METRICS[self.metric].better


class Comparison(Config):
    """Two models on the same items."""

    suite: str
    metric: Metric
    model: str
    baseline: str
    difference: Estimate
    """Model minus baseline in the metric's own unit, paired by item."""
    p_value: float = Field(ge=0, le=1)
    """That the two are equally good. Accuracy: exact McNemar; a paired test over groups where items share a source."""
    p_adjusted: float = Field(ge=0, le=1)
    """The same, corrected by Holm's method over all suites with this baseline."""
    flips_lost: Estimate | None = None
    """Share of items that the baseline has right and the model has wrong; None for metrics without right and wrong."""
    flips_won: Estimate | None = None
    """The other way round."""

    @property
    def gain(self) -> Estimate:
        """The difference, turned so that more is better."""
        return self.difference if METRICS[self.metric].better == "higher" else self.difference.negated()


class EvaluationSummary(Config):
    """Everything that the gate and the report know about quality. Recomputable from the records."""

    schema_id: Literal["stillhouse/evaluation/3"] = "stillhouse/evaluation/3"
    confidence: float
    resamples: int
    candidate: str
    """Name of the student that asks for promotion."""
    models: tuple[str, ...]
    """Those of `MODELS` that were measured, in that order, then the steps of the compression chain in theirs."""
    suites: tuple[SuiteSummary, ...] = Field(min_length=1)
    """The in-domain suite first."""
    comparisons: tuple[Comparison, ...]
    """On every suite: the candidate against each other model."""
    retention: dict[str, Estimate]
    """By suite whose metric is better when higher: the candidate's figure divided by the teacher's, paired by item.
    Empty where the teacher could not be measured."""
    mean_retention: Estimate | None
    """The mean over those suites, each counting alike; None if there is none."""
    drops: dict[str, dict[str, Estimate]]
    """By model, then by suite other than the in-domain one: how much worse it is there, positive if worse."""
    excess_drops: dict[str, Estimate]
    """By suite: the candidate's drop minus the teacher's own, paired by item within each suite. Empty where the teacher
    could not be measured."""

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher was measured too; one behind an API can't be."""
        return "teacher" in self.models

    def suite(self, name: str) -> SuiteSummary | None:
        """Return the suite of that name, if it was run."""
        return next((suite for suite in self.suites if suite.name == name), None)

    def comparison(self, suite: str, baseline: str) -> Comparison | None:
        """Return the candidate's comparison with ``baseline`` on ``suite``, if both were measured."""
        return next((c for c in self.comparisons if c.suite == suite and c.baseline == baseline), None)
