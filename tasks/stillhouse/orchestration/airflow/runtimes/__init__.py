"""One operator per runtime. Only the one that the deployment names is imported: each needs a provider of its own."""

import importlib
from typing import TypeVar, cast

from stillhouse.contract import ConfigurationError
from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.runtimes import Runtime

Operator = TypeVar("Operator", bound=ContainerOperator)

_RUNS = {
    "local": ("local", "LocalRun"),
    "docker": ("docker", "DockerRun"),
    "kubernetes": ("kubernetes", "PodRun"),
    "trainjob": ("trainjob", "TrainJobRun"),
}
"""Kind of runtime -> module here, and the class in it that runs a container task."""


def operator_class(task: type[Operator], runtime: Runtime) -> type[Operator]:
    """Return the operator that does ``task`` on ``runtime``.

    Args:
        task: What to do: builds a container task and deals with its end.
        runtime: Where the container task runs.

    Raises:
        ConfigurationError: The runtime's Airflow provider is not installed.
    """
    module, name = _RUNS[runtime.kind]
    try:
        run = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    except ImportError as error:
        raise ConfigurationError(
            f"runtime {runtime.kind} needs its Airflow provider ({error.name} is missing)"
        ) from None
    about = {"__module__": task.__module__, "__doc__": task.__doc__}
    return cast(type[Operator], type(run)(f"{name.removesuffix('Run')}{task.__name__}", (task, run), about))
