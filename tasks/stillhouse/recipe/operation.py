"""Sections ``schedule`` and ``resources``: when a workflow runs, and on what."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stillhouse.recipe.base import Config

StageName = Literal[
    "permit",
    "validate",
    "prepare-teacher",
    "initialise",
    "generate",
    "curate",
    "teach",
    "distill",
    "evaluate",
    "decide",
    "promote",
    "announce",
]
"""The kinds of task that a workflow is made of, in their order."""


class ScheduleConfig(Config):
    """When the workflow runs by itself; with neither field it runs only when triggered."""

    cron: str | None = None
    """Five fields, in UTC."""
    assets: tuple[str, ...] = ()
    """URIs of Airflow assets: an update of all of them starts a run, beside the cron schedule if there is one."""

    @model_validator(mode="after")
    def _cron_has_five_fields(self) -> Self:
        if self.cron is not None and len(self.cron.split()) != 5:
            raise ValueError("cron needs five fields: minute hour day month weekday")
        return self


class StageResources(Config):
    """What one task may use, and how often it is tried."""

    cpus: int = Field(default=1, ge=1)
    """Threads of the numerical libraries. Part of what makes a result reproducible bit for bit."""
    processes: int = Field(default=1, ge=1)
    """That train together, each with ``cpus`` threads or a GPU: torchrun starts them. Only for stage ``distill``."""
    timeout_hours: float = Field(default=24.0, gt=0)
    retries: int = Field(default=2, ge=0, le=20)
    """Further tries after a failure that may pass: exit codes 75 and 137."""


class ResourcesConfig(Config):
    """Resources of all stages, and of single ones that differ."""

    default: StageResources = StageResources()
    stages: dict[StageName, StageResources] = {}

    @model_validator(mode="after")
    def _only_training_has_several_processes(self) -> Self:
        several = [name for name, stage in self.stages.items() if stage.processes > 1 and name != "distill"]
        if self.default.processes > 1 or several:
            raise ValueError("only stages.distill may have more than one of processes")
        return self

    def of(self, stage: StageName) -> StageResources:
        """Resources of one stage."""
        return self.stages.get(stage, self.default)
