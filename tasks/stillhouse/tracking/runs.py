"""MLflow runs: one per workflow run, and below it one per task, found again whenever the task is tried again."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.validation import MAX_METRICS_PER_BATCH, MAX_PARAMS_TAGS_PER_BATCH

from stillhouse.contract import HistoryPoint, StageBug, StageResult, TrainingHistory
from stillhouse.recipe import Recipe
from stillhouse.tracking.content import recipe_params, result_datasets, result_metrics, result_tags
from stillhouse.tracking.live import LiveCurve, curve_metrics, held_out_metrics
from stillhouse.tracking.server import connect, server_errors_explained

logger = logging.getLogger(__name__)
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
Item = TypeVar("Item")

_RUN_TAG = "stillhouse.run_id"
_TASK_TAG = "stillhouse.task_id"
_KIND_TAG = "stillhouse.kind"
_NOTE_TAG = "mlflow.note.content"
_PARENT_TAG = "mlflow.parentRunId"
_LOGGED_MODEL = "models:/m-"
_SAMPLING_SECONDS = 5.0


class Tracking:
    """One experiment on one MLflow server.

    Every method can be repeated and then changes nothing. All raise ``TryAgain`` within seconds when the server is
    away, and ``NotPermitted`` when it refuses the credentials.

    Args:
        uri: Address of the server.
        experiment: Name of the experiment; it is created if there is none.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri = uri
        self._client = connect(uri)
        self._curves: dict[str, LiveCurve] = {}
        with server_errors_explained(uri):
            self._experiment_id = self._open_experiment(experiment)

    def open_workflow(self, run_id: str, recipe: Recipe, links: Mapping[str, str] | None = None) -> str:
        """Find or create the run of a workflow run, and show its recipe.

        Args:
            run_id: The workflow run.
            recipe: Its recipe, whose fields become parameters.
            links: Addresses to show in the run's description, by name.

        Returns:
            The MLflow run id.
        """
        links = links or {}
        note = "\n".join([recipe.description, *(f"- [{name}]({address})" for name, address in links.items())])
        with server_errors_explained(self._uri):
            run = self._find_or_create(
                {_KIND_TAG: "workflow", _RUN_TAG: run_id, "stillhouse.recipe": recipe.name},
                name=f"{recipe.name} {datetime.now(UTC):%d %b %H:%M}",
                # Born with its note: MLflow refuses a new tag that two tasks bring at the same moment.
                extra={_NOTE_TAG: note},
            )
            self._show_params(run, recipe_params(recipe))
            if links and run.data.tags.get(_NOTE_TAG) != note:
                self._client.set_tag(run.info.run_id, _NOTE_TAG, note)
        return str(run.info.run_id)

    def open_task(self, run_id: str, task_id: str, stage: str) -> str:
        """Find or create the run of a task, below its workflow's, and set it running.

        Returns:
            The MLflow run id.

        Raises:
            StageBug: The workflow's run was not opened before.
        """
        with server_errors_explained(self._uri):
            parent = self._find({_KIND_TAG: "workflow", _RUN_TAG: run_id})
            if parent is None:
                raise StageBug(f"workflow run {run_id} has no MLflow run; open_workflow comes before open_task")
            tags = {_KIND_TAG: "task", _RUN_TAG: run_id, _TASK_TAG: task_id, "stillhouse.stage": stage}
            run = self._find_or_create(tags, name=task_id, extra={_PARENT_TAG: parent.info.run_id})
        return str(run.info.run_id)

    def publish(
        self,
        mlflow_run_id: str,
        result: StageResult,
        *,
        history: TrainingHistory | None = None,
        files: Mapping[str, Path] | None = None,
        reused: bool = False,
    ) -> None:
        """Show a result, its figures, curves, digests, data sets and files, and end the task's run.

        Args:
            mlflow_run_id: The task's run.
            result: The result.
            history: The curves of its training.
            files: Files and folders to keep as artifacts; a folder goes below its name here.
            reused: The result is an earlier run's.
        """
        self._end_curve(mlflow_run_id)
        with server_errors_explained(self._uri):
            # The result's own time, not now: logging the same again adds nothing.
            timestamp = int(result.finished_at.timestamp() * 1000)
            metrics = [Metric(name, value, timestamp, 0) for name, value in result_metrics(result).items()]
            if history:
                start = self._client.get_run(mlflow_run_id).info.start_time
                metrics += [metric for point in history.points for metric in curve_metrics(point, start)]
                metrics += [metric for point in history.validation for metric in held_out_metrics(point, start)]
            self._log(mlflow_run_id, metrics)
            self._tag(mlflow_run_id, {**result_tags(result), "stillhouse.reused": str(reused).lower()})
            datasets = result_datasets(result)
            if datasets:
                self._client.log_inputs(mlflow_run_id, datasets)
            self._keep(mlflow_run_id, files or {})
            self._client.set_terminated(mlflow_run_id, "FINISHED")

    def live(self, mlflow_run_id: str) -> Callable[[HistoryPoint], None]:
        """Return what draws a training's points as they come, in the background, and never fails."""
        with server_errors_explained(self._uri):
            start = self._client.get_run(mlflow_run_id).info.start_time
        curve = self._curves[mlflow_run_id] = LiveCurve(self._client, mlflow_run_id, start)
        return curve

    @contextmanager
    def system_metrics(self, mlflow_run_id: str) -> Iterator[None]:
        """Sample processor, memory, disk, network and GPU into the task's run, every five seconds."""
        monitor = SystemMetricsMonitor(
            mlflow_run_id, sampling_interval=_SAMPLING_SECONDS, resume_logging=True, tracking_uri=self._uri
        )
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def close_task(self, mlflow_run_id: str, status: RunStatus) -> None:
        """End the run of a task that has no result to publish."""
        self._end_curve(mlflow_run_id)
        with server_errors_explained(self._uri):
            self._client.set_terminated(mlflow_run_id, status)

    def close_workflow(
        self,
        mlflow_run_id: str,
        *,
        succeeded: bool,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """End a workflow's run, and with it the runs of tasks that were killed without a word.

        Args:
            mlflow_run_id: The workflow's run.
            succeeded: All its tasks did what they should.
            metrics: Figures for the table in which runs are compared.
            tags: Tags to set, such as the verdict.
            files: Files and folders to keep as artifacts.
        """
        with server_errors_explained(self._uri):
            start = self._client.get_run(mlflow_run_id).info.start_time
            self._log(mlflow_run_id, [Metric(name, value, start, 0) for name, value in (metrics or {}).items()])
            self._tag(mlflow_run_id, tags or {})
            self._keep(mlflow_run_id, files or {})
            for task in self._search({_PARENT_TAG: mlflow_run_id}):
                if task.info.status == "RUNNING":
                    self._client.set_terminated(task.info.run_id, "KILLED")
            self._client.set_terminated(mlflow_run_id, "FINISHED" if succeeded else "FAILED")

    def log_version_figures(self, mlflow_run_id: str, model: str, version: int, figures: Mapping[str, float]) -> None:
        """Show figures on the logged model behind a registered version: MLflow lists models by them.

        A version of another server's, or one that was registered without a logged model, is left alone.

        Args:
            mlflow_run_id: The run in which they were measured.
            model: Name of the registered model.
            version: The version.
            figures: By name; see `stillhouse.evaluation.headline.headline_figures`.
        """
        with server_errors_explained(self._uri):
            # MLflow does not keep a version's ``model_id``, but its source names the logged model.
            _, logged, number = self._client.get_model_version(model, str(version)).source.partition(_LOGGED_MODEL)
            if not logged:
                return
            # The run's own time, not now: logging the same again adds nothing.
            start = self._client.get_run(mlflow_run_id).info.start_time
            model_id = f"m-{number}"
            self._log(mlflow_run_id, [Metric(name, figures[name], start, 0, model_id=model_id) for name in figures])

    def _end_curve(self, mlflow_run_id: str) -> None:
        """Let the background finish first: MLflow refuses a point that two requests bring at the same moment."""
        curve = self._curves.pop(mlflow_run_id, None)
        if curve is not None:
            curve.close()

    def _open_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another task was faster
                    raise
                found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _find_or_create(self, tags: Mapping[str, str], *, name: str, extra: Mapping[str, str]) -> Run:
        """Return the run with these tags; a new one gets the extra tags with them."""
        found = self._find(tags)
        if found is None:
            created = self._client.create_run(self._experiment_id, tags={**tags, **extra}, run_name=name)
            found = self._find(tags) or created
            if found.info.run_id != created.info.run_id:  # another task was faster
                self._client.delete_run(created.info.run_id)
        if found.info.status != "RUNNING":
            self._client.update_run(found.info.run_id, status="RUNNING")
        return found

    def _find(self, tags: Mapping[str, str]) -> Run | None:
        """Return the oldest run with these tags."""
        return min(self._search(tags), key=lambda run: (run.info.start_time, run.info.run_id), default=None)

    def _search(self, tags: Mapping[str, str]) -> list[Run]:
        query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return list(self._client.search_runs([self._experiment_id], query, max_results=1000))

    def _show_params(self, run: Run, params: Mapping[str, str]) -> None:
        for tries_left in reversed(range(5)):
            missing = [Param(*item) for item in params.items() if item[0] not in run.data.params]
            try:
                for batch in _batches(missing, MAX_PARAMS_TAGS_PER_BATCH):
                    self._client.log_batch(run.info.run_id, params=batch)
            except MlflowException as error:
                # MLflow refuses a parameter that another task has just logged: see what is still missing.
                if error.get_http_status_code() >= 500 or not tries_left:
                    raise
                run = self._client.get_run(run.info.run_id)
            else:
                return

    def _keep(self, mlflow_run_id: str, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            if path.is_dir():
                self._client.log_artifacts(mlflow_run_id, str(path), artifact_path=name)
            else:
                self._client.log_artifact(mlflow_run_id, str(path))

    def _log(self, mlflow_run_id: str, metrics: list[Metric]) -> None:
        for batch in _batches(metrics, MAX_METRICS_PER_BATCH):
            self._client.log_batch(mlflow_run_id, metrics=batch)

    def _tag(self, mlflow_run_id: str, tags: Mapping[str, str]) -> None:
        for batch in _batches(list(tags.items()), MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(mlflow_run_id, tags=[RunTag(*item) for item in batch])


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
