"""Sections ``evaluation``, ``gate`` and ``promotion``: what counts as proof and what follows from it."""

from typing import Literal

from pydantic import Field

from stillhouse.recipe.base import Config, Name


class EvaluationConfig(Config):
    """How every model of the run is measured, on the same frozen items."""

    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Level of every interval."""
    resamples: int = Field(default=2000, ge=100)
    """Draws of the paired bootstrap."""
    calibration_bins: int = Field(default=15, ge=2)
    """Equal-mass bins of the expected calibration error."""
    batch_size: int = Field(default=64, ge=1)
    """Sequences per forward pass."""
    latency_items: int = Field(default=100, ge=10)
    """Test items timed one by one, alternating between the models."""
    seed: int = Field(default=29, ge=0)


class GateConfig(Config):
    """Which rules decide about promotion."""

    policy: str
    """Path of the policy file, absolute or relative to the folder of the recipe file."""


class PromotionConfig(Config):
    """Where an accepted student goes."""

    model: Name
    """Name of the registered model; service owners load ``models:/MODEL@champion``."""
    approval: Literal["auto", "human"] = "human"
    """``human``: a reviewer approves the decision in the Airflow UI; no answer in time is a rejection."""
    approval_hours: float = Field(default=72.0, gt=0)
    """Time for the answer."""
