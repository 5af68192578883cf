"""Showing stage results in MLflow. MLflow is a view: everything in it comes from what the run stored."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stillhouse.contract import HistoryPoint, StageRequest, StageResult, TrainingHistory
from stillhouse.store import fetch_artifact

if TYPE_CHECKING:
    from stillhouse.tracking import Tracking

EXPERIMENT_PREFIX = "stillhouse"
SHOWN_SUFFIXES = (".html", ".json", ".md")
"""Files that reviewers read in MLflow; weights and data stay in the store, named by digest."""


@dataclass(frozen=True, kw_only=True)
class Publisher:
    """The MLflow run of one task; without a tracking server everything here does nothing."""

    tracking: "Tracking | None"
    mlflow_run_id: str | None

    @classmethod
    def open(cls, request: StageRequest) -> "Publisher":
        """Find or create the task's run below the workflow's.

        Raises:
            TryAgain: The server does not answer.
        """
        if request.tracking_uri is None:
            return cls(tracking=None, mlflow_run_id=None)
        from stillhouse.tracking import Tracking

        recipe = request.parsed_recipe()
        tracking = Tracking(request.tracking_uri, f"{EXPERIMENT_PREFIX}/{recipe.name}")
        tracking.open_workflow(request.run_id, recipe)
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

    def publish(self, result: StageResult) -> str | None:
        """Show a result: metrics, curves, digests and the files that people read.

        Raises:
            TryAgain: The server does not answer. The result is stored; the next try only publishes.
        """
        if self.tracking is None or self.mlflow_run_id is None:
            return None
        with _readable_files(result) as files:
            self.tracking.publish(self.mlflow_run_id, result, history=_history(result), files=files)
        return self.mlflow_run_id


def _history(result: StageResult) -> TrainingHistory | None:
    artifact = result.outputs.get("history")
    if artifact is None:
        return None
    with TemporaryDirectory() as cache:
        return TrainingHistory.model_validate_json(fetch_artifact(artifact, Path(cache)).read_bytes())


@contextmanager
def _readable_files(result: StageResult) -> Iterator[dict[str, Path]]:
    with TemporaryDirectory() as cache:
        yield {
            name: fetch_artifact(artifact, Path(cache) / name)
            for name, artifact in result.outputs.items()
            if name == "docs" or artifact.uri.endswith(SHOWN_SUFFIXES)
        }
