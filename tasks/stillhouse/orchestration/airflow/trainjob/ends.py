"""How a TrainJob ended, and what can go wrong with one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airflow.sdk.exceptions import AirflowException
from kubernetes.client import V1Pod

from stillhouse.orchestration.airflow.trainjob.pods import first_failure

DEADLINE_EXCEEDED = "DeadlineExceeded"
"""Reason of a TrainJob that took longer than it may."""

VANISHED = "Vanished"
"""Reason given here for a TrainJob that is gone."""

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainJobEnd:
    """How a TrainJob ended."""

    succeeded: bool
    reason: str
    """Of the condition that ended it, such as ``DeadlineExceeded``; ``Vanished`` where it is gone."""
    message: str
    exit_code: int | None = None
    """Of the node that failed first; None where none is left to tell, as after a deadline or with a lost machine."""
    out_of_memory: bool = False
    """That node's container was killed for taking more memory than it may."""
    status: Json = field(default_factory=dict)
    """The TrainJob's, as last seen."""


class TrainJobFailed(AirflowException):
    """A TrainJob failed, or is gone."""

    def __init__(self, name: str, end: TrainJobEnd) -> None:
        code = "" if end.exit_code is None else f", exit code {end.exit_code}"
        memory = ", out of memory" if end.out_of_memory else ""
        super().__init__(f"TrainJob {name} failed ({end.reason}{code}{memory}): {end.message}")
        self.end = end


class TrainJobNameTaken(AirflowException):
    """There is a TrainJob of this name that belongs to somebody else."""


class TrainJobNotStarted(AirflowException):
    """The pods of a TrainJob did not start in time; it was deleted."""

    def __init__(self, name: str, reason: str, message: str) -> None:
        super().__init__(f"TrainJob {name} did not start ({reason or 'no reason'}): {message}")
        self.reason = reason
        """Why the first pod waits, such as ``ImagePullBackOff``; empty where there is none."""
        self.message = message


class TrainJobStillThere(AirflowException):
    """A TrainJob of an earlier try, or its pods, are still being deleted."""


def end_of(job: Json, pods: Callable[[], list[V1Pod]]) -> TrainJobEnd | None:
    """Return how ``job`` ended, or None while it has not.

    Args:
        job: The TrainJob.
        pods: Returns those of its nodes.
    """
    status = job.get("status") or {}
    met = {one["type"]: one for one in status.get("conditions") or () if one["status"] == "True"}
    condition = met.get("Failed") or met.get("Complete")
    if condition is None:
        return None
    succeeded = condition["type"] == "Complete"
    code, memory = (0, False) if succeeded else first_failure(pods())
    return TrainJobEnd(
        succeeded=succeeded,
        reason=condition.get("reason", ""),
        message=condition.get("message", ""),
        exit_code=code,
        out_of_memory=memory,
        status=status,
    )


def vanished(job: Json) -> TrainJobEnd:
    """Return the end of a TrainJob that is gone: nobody knows better, so it has failed."""
    return TrainJobEnd(succeeded=False, reason=VANISHED, message="somebody deleted it", status=job.get("status") or {})
