"""Showing stage results in MLflow. MLflow is a view: everything in it comes from what the run stored."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stillhouse.contract import HistoryPoint, StageRequest, StageResult, StillhouseError, TaskRecord, TrainingHistory
from stillhouse.stages.catalog import CATALOG
from stillhouse.store import fetch_artifact, read_artifact

if TYPE_CHECKING:
    from stillhouse.tracking import Tracking

logger = logging.getLogger(__name__)

EXPERIMENT_PREFIX = "stillhouse"
SHOWN_SUFFIXES = (".html", ".json", ".md")
"""Files that reviewers read in MLflow; weights and data stay in the store, named by digest."""


def open_tracking(request: StageRequest) -> "tuple[Tracking, str]":
    """Return the experiment of the request's recipe, and the MLflow id of the workflow's run in it.

    Raises:
        TryAgain: The server does not answer.
    """
    from stillhouse.tracking import Tracking  # MLflow takes seconds, and reused results need none of it

    recipe = request.parsed_recipe()
    tracking = Tracking(str(request.tracking_uri), f"{EXPERIMENT_PREFIX}/{recipe.name}")
    return tracking, tracking.open_workflow(request.run_id, recipe, request.links)


def publish_result(tracking: "Tracking", record: TaskRecord, result: StageResult) -> str:
    """Show the result of a task that has no run in MLflow yet, and return the run's id.

    Raises:
        TryAgain: The server does not answer.
    """
    mlflow_run_id = tracking.open_task(record.run_id, record.task_id, record.stage)
    with _readable_files(result) as files:
        reused = record.state == "reused"
        tracking.publish(mlflow_run_id, result, history=_history(result), files=files, reused=reused)
    return mlflow_run_id


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """The MLflow run of a task that is at work; without a tracking server everything here does nothing."""

    tracking: "Tracking | None" = None
    mlflow_run_id: str | None = None

    @classmethod
    def open(cls, request: StageRequest) -> "Publisher":
        """Find or create the task's run below the workflow's.

        Raises:
            TryAgain: The server does not answer.
        """
        if request.tracking_uri is None or not CATALOG[request.stage].tracked:
            return cls()
        tracking, _ = open_tracking(request)
        return cls(tracking=tracking, mlflow_run_id=tracking.open_task(request.run_id, request.task_id, request.stage))

    def live(self) -> Callable[[HistoryPoint], None]:
        """Return what draws a training's curves while it runs."""
        if self.tracking is None or self.mlflow_run_id is None:
            return lambda point: None
        return self.tracking.live(self.mlflow_run_id)

    def system_metrics(self) -> AbstractContextManager[None]:
        """Sample processor, memory and disk into the task's run."""
        if self.tracking is None or self.mlflow_run_id is None:
            return nullcontext()
        return self.tracking.system_metrics(self.mlflow_run_id)

    def give_up(self) -> None:
        """End the task's run as failed. What goes wrong here must not hide why the task failed."""
        if self.tracking is None or self.mlflow_run_id is None:
            return
        try:
            self.tracking.close_task(self.mlflow_run_id, "FAILED")
        except StillhouseError as error:
            logger.warning("the failed task's run stays open in MLflow: %s", error)

    def publish(self, record: TaskRecord, result: StageResult) -> str | None:
        """Show the result and end the task's run.

        Raises:
            TryAgain: The server does not answer. The result is stored; the next try only publishes.
        """
        return None if self.tracking is None else publish_result(self.tracking, record, result)


def _history(result: StageResult) -> TrainingHistory | None:
    artifact = result.outputs.get("history")
    return None if artifact is None else TrainingHistory.model_validate_json(read_artifact(artifact))


@contextmanager
def _readable_files(result: StageResult) -> Iterator[dict[str, Path]]:
    with TemporaryDirectory() as cache:
        yield {
            name: fetch_artifact(artifact, Path(cache) / name)
            for name, artifact in result.outputs.items()
            if name == "docs" or artifact.uri.endswith(SHOWN_SUFFIXES)
        }
