"""Sections ``evaluation``, ``gate`` and ``promotion``: what counts as proof and what follows from it."""

from typing import Literal

from pydantic import Field

from stillhouse.recipe.base import Config, Name


class GenerationConfig(Config):
    """Answers that can be verified: the model continues the prompt, and the row's text is the right answer."""

    max_new_tokens: int = Field(default=32, ge=1)
    samples: int = Field(default=1, ge=1)
    """Answers per prompt besides the greedy one that exact match judges: pass@1 is their share that is right."""
    temperature: float = Field(default=0.7, gt=0)
    """Of the samples."""
    compare: Literal["exact", "normalised", "last-number"] = "normalised"
    """``normalised``: case, punctuation and white space don't count. ``last-number``: the last number in both texts."""


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
    temperature_scaling: bool = False
    """Also report classifiers' calibration after one temperature was fitted to the validation set (Guo et al. 2017)."""
    generation: GenerationConfig | None = None
    """Also let causal language models answer the prompts of the sets; needs a ``prompt_column``."""
    seed: int = Field(default=29, ge=0)


class GateConfig(Config):
    """Which rules decide about promotion."""

    policy: str
    """Path of the policy file, absolute or relative to the folder of the recipe file."""


class ProductionConfig(Config):
    """A registered model, maybe on another server, that receives a verified copy of every champion."""

    model: Name
    """Name of the registered model there."""
    tracking_uri: str | None = Field(default=None, pattern=r"^https?://[^/@]+(/.*)?$")
    """The MLflow server; by default the one that tracks the runs. Credentials come from the environment."""


class PromotionConfig(Config):
    """Where an accepted student goes."""

    model: Name
    """Name of the registered model; service owners load ``models:/MODEL@champion``."""
    approval: Literal["auto", "human", "two-person"] = "human"
    """``human``: a reviewer approves the decision in the Airflow UI; no answer in time is a rejection.
    ``two-person``: the reviewer must not be who triggered the run."""
    approval_hours: float = Field(default=72.0, gt=0)
    """Time for the answer."""
    production: ProductionConfig | None = None
    """Also copy the promoted version into a production registry."""
