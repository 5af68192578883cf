"""One task as a container: what runs, with which settings, resources and labels. Knows no runtime and no Airflow."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from stillhouse.contract import ConfigurationError, StageRequest
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import ContainerRuntime
from stillhouse.recipe import StageResources
from stillhouse.stages.catalog import CATALOG

PREFIX = "stillhouse"
"""Of the names and labels of everything that runs."""

_MODULE = ("-m", "stillhouse.cli")
_TORCHRUN = ("-m", "stillhouse.stages.torchrun")


@dataclass(frozen=True, kw_only=True)
class ContainerTask:
    """What is to run, whatever runs it."""

    name: str
    """The same for the same task of a run: a second try finds what the first one left."""
    arguments: tuple[str, ...]
    """Of the command ``stillhouse``."""
    image: str | None = None
    """None where there are no containers."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Plain settings besides those that the runtime adds."""
    resources: StageResources = field(default_factory=StageResources)
    network: bool = True
    """Whether it talks to any server."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """``run``, ``task`` and ``stage``, for people and for whoever cleans up. At most 63 characters each."""

    @property
    def timeout(self) -> timedelta:
        """After which it is stopped."""
        return timedelta(hours=self.resources.timeout_hours)

    def command(self, python: str = "python") -> tuple[str, ...]:
        """Return what runs on one machine, with ``python`` there: the processes of all nodes beside each other."""
        return (python, *_torchrun(self.resources.world_size), *_MODULE, *self.arguments)

    def command_per_node(self, python: str = "python") -> tuple[str, ...]:
        """Return what runs on each of several nodes.

        ``torchrun`` takes the number of nodes, its own place among them and where to meet from ``PET_*`` variables.
        """
        return (python, *_TORCHRUN, *_MODULE, *self.arguments)


def _torchrun(processes: int) -> tuple[str, ...]:
    if processes == 1:
        return ()
    return (*_TORCHRUN, "--standalone", f"--nproc-per-node={processes}")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a task ended."""

    exit_code: int
    """Negative for a signal; 128 and the signal's number count the same."""
    out_of_memory: bool = False
    """It was killed for taking more memory than it may."""
    last_line: str = ""
    """Of its output."""

    @property
    def killed(self) -> bool:
        """Whether it did not end by itself: what it was doing may be done all the same."""
        return self.exit_code < 0 or self.exit_code > 128


def stage_task(request: StageRequest, uri: str, deployment: Deployment) -> ContainerTask:
    """Return the container task that runs ``request``, which lies at ``uri``."""
    resources = request.parsed_recipe().resources.of(request.stage)
    runtime = deployment.runtime
    arguments = ("stage", request.stage, "--request", uri, "--work", str(deployment.work))
    return ContainerTask(
        name=f"{PREFIX}-{request.stage}-{request.sha256[:12]}",
        arguments=arguments,
        image=runtime.image_for(resources) if isinstance(runtime, ContainerRuntime) else None,
        resources=resources,
        network=_talks(request),
        labels={"run": _label(request.run_id), "task": request.task_id, "stage": request.stage},
    )


def operation_task(arguments: tuple[str, ...], deployment: Deployment, *, run_id: str) -> ContainerTask:
    """Return the container task of a command for operators, such as a rollback.

    Args:
        arguments: Of ``stillhouse``; the first one names the command.
        deployment: Where this happens.
        run_id: The run that asks.
    """
    runtime = deployment.runtime
    digest = hashlib.sha256("\0".join((run_id, *arguments)).encode()).hexdigest()
    settings = {"STILLHOUSE_STORE": deployment.store, "MLFLOW_TRACKING_URI": deployment.tracking_uri or ""}
    return ContainerTask(
        name=f"{PREFIX}-{arguments[0]}-{digest[:12]}",
        arguments=arguments,
        image=runtime.image if isinstance(runtime, ContainerRuntime) else None,
        environment=settings,
        labels={"run": _label(run_id), "task": arguments[0], "stage": arguments[0]},
    )


def check_memory(task: ContainerTask, ended: Ended) -> None:
    """Explain an end for lack of memory; another try would end the same.

    Raises:
        ConfigurationError: The task ran out of memory.
    """
    if not ended.out_of_memory:
        return
    limit = task.resources.memory_gib
    had = f"its {limit:g} GiB" if limit else "the memory of its machine"
    where = f"resources.stages.{task.labels['stage']}.memory_gib"
    raise ConfigurationError(f"{task.labels['task']} ran out of {had}: raise {where}, or lower the batch size")


def _talks(request: StageRequest) -> bool:
    recipe = request.parsed_recipe()
    remote_source = any(source.kind != "path" for source in CATALOG[request.stage].sources(recipe).values())
    asks_api = request.stage == "generate" and recipe.teacher.api is not None
    return request.store.startswith("s3://") or request.tracking_uri is not None or remote_source or asks_api


def _label(text: str) -> str:
    """Return ``text`` as a label that Kubernetes takes: a long one keeps its end, where runs differ."""
    allowed = "".join(character if character.isalnum() or character in "-_." else "-" for character in text)
    return allowed[-63:].strip("-_.")
