"""What a training stage leaves behind besides weights."""

from typing import Literal

from pydantic import Field

from stillhouse.recipe import Config


class HistoryPoint(Config):
    """Training at one optimizer step, averaged since the point before."""

    step: int = Field(ge=1)
    epoch: float = Field(ge=0)
    seen: int = Field(ge=0)
    """Sequences so far."""
    learning_rate: float = Field(ge=0)
    loss: float
    """What the optimizer minimises."""
    terms: dict[str, float]
    """Each term before its weight: ``ce``, ``kd`` (with T^2), ``hidden``."""
    gradient_norm: float | None = None


class TrainingHistory(Config):
    """The curves of one training."""

    schema_id: Literal["stillhouse/training-history/1"] = "stillhouse/training-history/1"
    total_steps: int = Field(ge=1)
    points: tuple[HistoryPoint, ...]
