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
    "compress",
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


class Toleration(Config):
    """A taint of Kubernetes nodes that a task puts up with, such as that of GPU nodes."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """None stands for all of them."""


class StageResources(Config):
    """What one task may use, and how often it is tried. Where it runs is the deployment's business."""

    cpus: int = Field(default=1, ge=1)
    """Threads of the numerical libraries. Part of what makes a result reproducible bit for bit."""
    processes: int = Field(default=1, ge=1)
    """On each node that train together, each with ``cpus`` threads or a GPU: torchrun starts them. Only for stage
    ``distill``."""
    nodes: int = Field(default=1, ge=1)
    """Machines that train together. Where the deployment has one machine, their processes run there beside each other.
    Only for stage ``distill``."""
    gpus: int = Field(default=0, ge=0)
    """Accelerators on each node."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Limit on each node; None leaves it to the machine."""
    node_selector: dict[str, str] = {}
    """Labels that a Kubernetes node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of Kubernetes nodes that don't matter."""
    timeout_hours: float = Field(default=24.0, gt=0)
    retries: int = Field(default=2, ge=0, le=20)
    """Further tries after a failure that may pass: exit codes 75 and 137."""

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.nodes * self.processes


class ResourcesConfig(Config):
    """Resources of all stages, and of single ones that differ."""

    default: StageResources = StageResources()
    stages: dict[StageName, StageResources] = {}

    @model_validator(mode="after")
    def _only_training_has_several_processes(self) -> Self:
        several = [name for name, stage in self.stages.items() if stage.world_size > 1 and name != "distill"]
        if self.default.world_size > 1 or several:
            raise ValueError("only stages.distill may have more than one of processes or nodes")
        return self

    def of(self, stage: StageName) -> StageResources:
        """Resources of one stage."""
        return self.stages.get(stage, self.default)
