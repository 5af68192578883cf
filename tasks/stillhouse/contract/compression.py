"""What a step of the compression chain did, and whether it stays."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from stillhouse.contract.scores import Estimate, Metric
from stillhouse.recipe import Config
from stillhouse.recipe.compression import Form

DISTILLED = "kd"
"""The model from which the chain starts."""

PROMOTABLE: tuple[Form, ...] = ("transformers", "quantized")
"""Forms that plain transformers reads, so that ``models:/NAME@champion`` can be one."""


class ModelSize(Config):
    """How large a model is."""

    parameters: int = Field(ge=1)
    """Weights, each counted once."""
    num_bytes: int = Field(ge=1)
    """Of the files of weights."""


class StepReport(Config):
    """One step of the chain: from one model to another, and the gate between them."""

    schema_id: Literal["stillhouse/compression-step/1"] = "stillhouse/compression-step/1"
    name: str
    """Of the step, and of the model that it makes."""
    kind: str
    position: int = Field(ge=1)
    """In the chain."""
    form: Form
    before: str
    """Name of the model that it started from."""
    did: str
    """One line for people."""
    rounds: int = Field(ge=1)
    """Cuts, each followed by a training if the step heals."""
    metric: Metric
    """By which the two models are compared, on the validation set."""
    score_before: Estimate
    score: Estimate
    drop: Estimate
    """How much worse it became, positive if worse; paired by item."""
    max_drop: float
    agreement: Estimate | None = None
    """Share of the validation set on which both predict the same; None where models don't choose."""
    size_before: ModelSize
    size: ModelSize
    kept: bool
    """A step that is not kept is measured, and nothing builds on it."""
    reason: str
    """Why it is kept or dropped: one line."""


class Chain(Config):
    """The steps so far, in their order."""

    steps: tuple[StepReport, ...] = ()

    @classmethod
    def of(cls, steps: Sequence[StepReport]) -> Self:
        """Return the chain of ``steps``, given in any order."""
        return cls(steps=tuple(sorted(steps, key=lambda step: step.position)))

    def last_good(self, *forms: Form) -> str:
        """Return the name of the last model that was kept and is read in one of ``forms``: at least the distilled one.

        A model made from another one that came later is no part of that one's past, so the last one is the smallest.
        """
        kept = [step.name for step in self.steps if step.kept and step.form in forms]
        return kept[-1] if kept else DISTILLED

    @property
    def candidate(self) -> str:
        """Name of the model that asks for promotion: the last good one that transformers can read."""
        return self.last_good(*PROMOTABLE)

    @property
    def variants(self) -> tuple[StepReport, ...]:
        """Return the kept models of another form: further versions of the same registered model."""
        return tuple(step for step in self.steps if step.kept and step.form not in PROMOTABLE)
