"""What a training stage leaves behind besides weights."""

from typing import Literal

from pydantic import Field

from stillhouse.recipe import Config


class HistoryPoint(Config):
    """Training at one optimizer step, averaged since the point before."""

    step: int = Field(ge=1)
    epoch: float = Field(ge=0)
    seen: int = Field(ge=0)
    """Documents so far."""
    learning_rate: float = Field(ge=0)
    loss: float
    """What the optimizer minimises."""
    terms: dict[str, float]
    """Each term before its weight: ``ce``, ``kd`` (with T^2), and the feature terms by name."""
    gradient_norm: float | None = None
    """Of the whole loss, before clipping."""
    term_gradient_norms: dict[str, float] = {}
    """Of each term before its weight, on a micro-batch of one step since the point before; empty at most points."""


class ValidationPoint(Config):
    """How well a model does on held-out data at one moment of its training."""

    step: int = Field(ge=0)
    """Optimizer steps that were done; 0 is before the training."""
    tokens: int = Field(ge=0)
    """Tokens that were read until then, over all passes and processes."""
    loss: float
    """Mean cross-entropy of a target, in nats, without dropout. Targets are texts of a classifier, else tokens."""
    targets: int = Field(ge=1)


class TrainingHistory(Config):
    """The curves of one training."""

    schema_id: Literal["stillhouse/training-history/1"] = "stillhouse/training-history/1"
    total_steps: int = Field(ge=1)
    points: tuple[HistoryPoint, ...]
    validation: tuple[ValidationPoint, ...] = ()
    """Empty unless `TrainingConfig.validation_points` asks for them."""
    canary_rows: int | None = Field(default=None, ge=1)
    """Rows of the teacher's cache that were scored again and agreed; None where nothing was read from a cache, or no
    weights were there to score with."""
