"""The operator of every planned task: reuse what was done before, else run the stage and verify its result."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow.sdk import Context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException

from stillhouse.contract import (
    ConfigurationError,
    ExitCode,
    ResultRef,
    StageRequest,
    StillhouseError,
    TaskRecord,
    exit_code_of,
    pretty_json,
)
from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.airflow.exits import StageKilled, error_of_exit
from stillhouse.orchestration.airflow.links import MlflowRunLink, ReportLink, TaskLinks, task_links
from stillhouse.orchestration.airflow.params import recipe_of_run
from stillhouse.orchestration.containers import check_memory, stage_task
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.places import airflow_place, workflow_run_id
from stillhouse.orchestration.plan import PlannedTask, plan
from stillhouse.orchestration.requests import build_request
from stillhouse.recipe import Recipe, RecipeError, load_recipe
from stillhouse.stages.catalog import find_reusable, key_of
from stillhouse.stages.records import Recorder, record_key, verify_result
from stillhouse.store import ObjectStore, open_store

APPROVE_TASK = "approve"


def pull_result(context: Context, task_id: str) -> ResultRef:
    """Return the reference that the planned task ``task_id`` of this run left behind.

    Raises:
        ConfigurationError: It left none.
    """
    airflow_task, map_index = airflow_place(task_id)
    pulled = context["ti"].xcom_pull(task_ids=airflow_task, map_indexes=map_index)
    if not isinstance(pulled, Mapping):
        raise ConfigurationError(f"task {task_id} left no result; clear it and run it again")
    return ResultRef.model_validate(pulled)


class StageOperator(ContainerOperator):
    """Runs one planned task of a recipe as ``stillhouse stage``.

    The result that travels on is ``{uri, sha256}`` of a ``result.json`` in the store, verified.

    Args:
        recipe_file: The recipe file of the DAG.
        planned_task: Task id in `stillhouse.orchestration.plan`.
    """

    operator_extra_links = (MlflowRunLink(), ReportLink())
    ui_color = "#f3e9d8"

    def __init__(self, *, recipe_file: str, planned_task: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recipe_file = recipe_file
        self.planned_task = planned_task
        self.links = TaskLinks()

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the reference to the task's result.

        Raises:
            AirflowSkipException: The task needs an MLflow server and there is none.
            StillhouseError: What went wrong; see `stillhouse.orchestration.airflow.exits` for what is tried again.
        """
        deployment = Deployment.from_environment()
        task = next(task for task in plan(load_recipe(Path(self.recipe_file))) if task.task_id == self.planned_task)
        if task.stage in ("promote", "announce") and deployment.tracking_uri is None:
            raise AirflowSkipException("no MLflow server in this deployment: set MLFLOW_TRACKING_URI")
        store = open_store(deployment.store)
        try:
            recipe = recipe_of_run(Path(self.recipe_file), context["params"])
            request = self._request(context, task, recipe, deployment)
            reference = self._reuse(store, request, deployment) or self._run(context, store, request, deployment)
        except (StillhouseError, RecipeError) as error:
            _record_failure(store, run_id_of(context), task, error)
            raise
        self.links = task_links(request, read_record(store, request), page=deployment.tracking_page)
        return reference.model_dump(mode="json")

    def _request(self, context: Context, task: PlannedTask, recipe: Recipe, deployment: Deployment) -> StageRequest:
        sources = {task_id for task_id, _ in task.inputs.values()}
        parameters = {}
        airflow = conf.get("api", "base_url", fallback="").rstrip("/")
        run_address = f"{airflow}/dags/{context['dag'].dag_id}/runs/{context['run_id']}"
        if task.stage == "promote":
            parameters["approval"] = context["ti"].xcom_pull(task_ids=APPROVE_TASK)
        return build_request(
            task,
            recipe=recipe,
            run_id=run_id_of(context),
            results={task_id: pull_result(context, task_id) for task_id in sorted(sources)},
            deployment=deployment,
            parameters=parameters,
            links={"Airflow run": run_address} if airflow else {},
        )

    def _reuse(self, store: ObjectStore, request: StageRequest, deployment: Deployment) -> ResultRef | None:
        if deployment.runtime.kind != "local":
            # The content key holds the versions of what is installed: only the stage's own image knows them.
            return None
        key = key_of(request)
        found = find_reusable(request, key)
        if found is not None:
            message = f"reused: same content key {key[:12]}"
            self.log.info("%s, result %s", message, found.uri)
            Recorder(store, request).update(state="reused", key=key, result=found, message=message)
        return found

    def _run(self, context: Context, store: ObjectStore, request: StageRequest, deployment: Deployment) -> ResultRef:
        place = f"runs/{request.run_id}/requests/{request.task_id}.json"
        store.put(place, pretty_json(request))
        task = stage_task(request, store.uri(place), deployment)
        ended = self.run_container(context, task, deployment)
        check_memory(task, ended)
        record = read_record(store, request)
        if record is not None and record.request_sha256 != request.sha256:
            record = None
        done = record is not None and record.state in ("succeeded", "reused")
        # One that was killed, or whose container vanished, may have done its work before.
        if ended.exit_code != 0 and not (done and ended.killed):
            raise error_of_exit(ended.exit_code, record.message if record and record.state == "failed" else "")
        if record is None or not done or record.result is None:
            raise error_of_exit(ExitCode.BUG, "the stage ended well but recorded no result")
        verify_result(record.result)
        self.log.info("%s", record.message)
        return record.result


def read_record(store: ObjectStore, request: StageRequest) -> TaskRecord | None:
    """Return what the task of ``request`` last recorded, if anything."""
    try:
        return TaskRecord.model_validate_json(store.get(record_key(request.run_id, request.task_id)))
    except FileNotFoundError:
        return None


def run_id_of(context: Context) -> str:
    """Return the name of the workflow run beyond Airflow."""
    return workflow_run_id(context["dag"].dag_id, context["run_id"])


def _record_failure(store: ObjectStore, run_id: str, task: PlannedTask, error: StillhouseError | RecipeError) -> None:
    """Record why a task failed where it could not do so itself: it was killed, or never began."""
    key = record_key(run_id, task.task_id)
    try:
        record = TaskRecord.model_validate_json(store.get(key))
    except FileNotFoundError:
        record = TaskRecord(
            run_id=run_id, task_id=task.task_id, stage=task.stage, state="running", updated_at=datetime.now(UTC)
        )
    if record.state != "failed":
        code = ExitCode.KILLED if isinstance(error, StageKilled) else exit_code_of(error)
        changes = {"state": "failed", "message": str(error), "exit_code": int(code), "updated_at": datetime.now(UTC)}
        store.put(key, pretty_json(record.replace(**changes)))
