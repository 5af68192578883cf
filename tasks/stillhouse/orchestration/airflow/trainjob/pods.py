"""The pods of a TrainJob: what they write, how one failed, why one waits. A part of the operator beside."""

import math
import signal
import time
from typing import Any

from kubernetes.client import CoreV1Api, V1Pod

CONTAINER = "node"
"""The container and the replicated job that train, in every runtime of the Trainer."""

_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_SECONDS_OF_OVERLAP = 5
_TOLD_TO_STOP = (128 + signal.SIGTERM, 128 + signal.SIGINT)


class PodLog:
    """What a pod writes, piece by piece."""

    def __init__(self, core: CoreV1Api, pod: V1Pod) -> None:
        self._core = core
        self._name, self._namespace = pod.metadata.name, pod.metadata.namespace
        self.uid = pod.metadata.uid
        self._asked_at: float | None = None
        self._last: str | None = None

    def new_lines(self) -> list[str]:
        """Return the lines that were not returned before.

        The last one tells where to go on: its time makes it unlike all others. Clocks are not compared.
        """
        now = time.monotonic()
        since = None if self._asked_at is None else math.ceil(now - self._asked_at) + _SECONDS_OF_OVERLAP
        answer = self._core.read_namespaced_pod_log(
            *(self._name, self._namespace),
            container=CONTAINER,
            timestamps=True,
            since_seconds=since,
            _preload_content=False,
        )
        lines = answer.data.decode(errors="replace").rstrip("\n").split("\n")
        self._asked_at = now
        new = [line for line in lines if line]
        if self._last in new:
            new = new[len(new) - new[::-1].index(self._last) :]
        if new:
            self._last = new[-1]
        return [line.partition(" ")[2] for line in new]


def node_of(pod: V1Pod) -> int:
    """Return the number of the node that ``pod`` is."""
    return int(pod.metadata.labels.get(_INDEX_LABEL, 0))


def first_failure(pods: list[V1Pod]) -> tuple[int | None, bool]:
    """Return exit code of the container that failed first, and whether memory was short.

    The others fail because of it, or are told to stop. That is often within the second that Kubernetes writes down: of
    those, a killed one goes first. A pod that failed and has no exit code was lost, and is the cause of all.
    """
    failed = [pod for pod in pods if pod.status.phase == "Failed"]
    ended: list[Any] = [container.state.terminated if (container := _container(pod)) else None for pod in failed]
    if not ended or None in ended:
        return None, False
    first = min(ended, key=lambda one: (one.exit_code in _TOLD_TO_STOP, one.finished_at, one.exit_code <= 128))
    return first.exit_code, first.reason == "OOMKilled"


def why_waiting(pod: V1Pod) -> tuple[str, str]:
    """Return reason and message of what the container in ``pod`` waits for."""
    container = _container(pod)
    waiting = container.state.waiting if container else None
    if waiting is None:
        return "", f"pod {pod.metadata.name} has not started; look at its events"
    return waiting.reason or "", (waiting.message or "").strip().partition("\n")[0]


def is_unscheduled(pod: V1Pod) -> bool:
    """Tell whether no machine has room for ``pod`` yet."""
    conditions = pod.status.conditions or ()
    return any(one.type == "PodScheduled" and one.status == "False" for one in conditions)


def _container(pod: V1Pod) -> Any:
    return next((one for one in pod.status.container_statuses or () if one.name == CONTAINER), None)
