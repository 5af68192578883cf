"""A container task as a container of a Docker engine, in the terms of the engine's API: hardened, with its resources.

What is not given here is not there: no capability, no way to more rights, no writable place but two temporary ones and
the volumes of the deployment, and no network where the task needs none.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from stillhouse.orchestration.containers import PREFIX, ContainerTask
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import DockerRuntime
from stillhouse.recipe import StageResources

USER = "10001:10001"
"""Of the task image; see ``docker/task``."""

DEADLINE = f"{PREFIX}.deadline"
"""Label: when a container has run for too long, in ISO 8601."""

DEADLINE_GRACE = timedelta(minutes=10)
"""After a task's own timeout, which Airflow watches: only what Airflow has lost is still there by then."""

MOST_PROCESSES = 4096
"""With threads. Far beyond what training and loading take; it stops runaway forks."""

IN_MEMORY = "/tmp"
ON_DISK = "/var/tmp"
IN_MEMORY_GIB = 2
SHARED_MEMORY_GIB = 2
"""Of /dev/shm, through which processes that train or load together hand tensors. Limits: neither reserves memory."""

_GIB = 1 << 30
_PERIOD = 100_000


def container_config(
    task: ContainerTask,
    deployment: Deployment,
    *,
    image: str,
    digest: str,
    secrets: Mapping[str, str],
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return the body of the engine's request to create the container of ``task``.

    Args:
        task: What runs in it.
        deployment: With a `DockerRuntime`.
        image: Id of the image, so that nothing else runs under its name meanwhile.
        digest: What results say that they were made with.
        secrets: Environment variables that are shown nowhere.
        now: For the deadline; the present by default.
    """
    runtime = deployment.runtime
    assert isinstance(runtime, DockerRuntime)
    deadline = (now or datetime.now(UTC)) + task.timeout + DEADLINE_GRACE
    environment = {**runtime.environment, **task.environment, **secrets, **_fixed_environment(digest)}
    return {
        "Image": image,
        "Entrypoint": list(task.command()),
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
        "User": USER,
        # Processes that train together meet at the name of their machine.
        "Hostname": task.name[-63:].lstrip("-"),
        "Labels": task_labels(task) | {DEADLINE: deadline.isoformat(timespec="seconds")},
        "HostConfig": {
            **_confinement(),
            **_limits(task.resources),
            **_network(task, runtime),
            "Mounts": _mounts(runtime, deployment.work),
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "20m", "max-file": "5"}},
        },
    }


def task_labels(task: ContainerTask) -> dict[str, str]:
    """Return the labels by which the container of ``task`` is known."""
    return {f"{PREFIX}.{name}": value for name, value in sorted(task.labels.items())}


def _fixed_environment(digest: str) -> dict[str, str]:
    return {
        "HOME": IN_MEMORY,
        "TMPDIR": ON_DISK,
        "PYTHONUNBUFFERED": "1",
        "STILLHOUSE_IMAGE_DIGEST": digest,
    }


def _confinement() -> dict[str, Any]:
    return {
        "Init": True,
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "IpcMode": "private",
        "ShmSize": SHARED_MEMORY_GIB * _GIB,
        "Tmpfs": {IN_MEMORY: f"rw,noexec,nosuid,nodev,mode=1777,size={IN_MEMORY_GIB * _GIB}"},
        "PidsLimit": MOST_PROCESSES,
        # What was in memory, such as texts and keys, is not written to a file.
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
    }


def _limits(resources: StageResources) -> dict[str, Any]:
    """Return the limits of all nodes together: their processes run beside each other."""
    limits: dict[str, Any] = {
        # Not ``NanoCpus``, which the engine refuses where the machine has fewer cores.
        "CpuPeriod": _PERIOD,
        "CpuQuota": resources.cpus * resources.world_size * _PERIOD,
    }
    if resources.memory_gib is not None:
        limits["Memory"] = limits["MemorySwap"] = int(resources.memory_gib * resources.nodes * _GIB)
    if resources.gpus:
        limits["DeviceRequests"] = [{"Count": resources.gpus * resources.nodes, "Capabilities": [["gpu"]]}]
    return limits


def _network(task: ContainerTask, runtime: DockerRuntime) -> dict[str, Any]:
    if task.network:
        return {"NetworkMode": runtime.network}
    # Without a network, the engine does not write down the container's own name.
    return {"NetworkMode": "none", "ExtraHosts": [f"{task.name[-63:].lstrip('-')}:127.0.0.1"]}


def _mounts(runtime: DockerRuntime, work: Path) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {
            "Type": "bind" if volume.source.startswith("/") else "volume",
            "Source": volume.source,
            "Target": volume.target,
            "ReadOnly": volume.read_only,
        }
        for volume in runtime.volumes
    ]
    # Volumes without a name are on disk, belong to whom the folder in the image does, and go with the container.
    mounts.append({"Type": "volume", "Target": ON_DISK})
    if not any(PurePosixPath(work).is_relative_to(volume.target) for volume in runtime.volumes):
        mounts.append({"Type": "volume", "Target": str(work)})
    return mounts
