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


class TrainingHistory(Config):
    """The curves of one training."""

    schema_id: Literal["stillhouse/training-history/1"] = "stillhouse/training-history/1"
    total_steps: int = Field(ge=1)
    points: tuple[HistoryPoint, ...]
