"""Buttons on a task's page in Airflow that lead to its run and report in MLflow."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
from airflow.sdk import BaseOperatorLink

from stillhouse.contract import StageRequest, TaskRecord
from stillhouse.stages.records import record_key
from stillhouse.store import ObjectStore

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

logger = logging.getLogger(__name__)

SECONDS_FOR_MLFLOW = 5.0
REPORT_ARTIFACT = "report.html"


@dataclass(frozen=True, kw_only=True)
class TaskLinks:
    """Addresses that belong to one task; empty where there is nothing to show."""

    mlflow_run: str = ""
    report: str = ""


class MlflowRunLink(BaseOperatorLink):
    """Leads to the task's run in MLflow."""

    name = "MLflow run"

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """Return the address, or nothing. Airflow asks on the worker, when the task has ended, and stores the answer."""
        return _links(operator).mlflow_run


class ReportLink(BaseOperatorLink):
    """Leads to the evaluation report among the artifacts of MLflow."""

    name = "Report"

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """Return the address, or nothing; see `MlflowRunLink.get_link`."""
        return _links(operator).report


def task_links(store: ObjectStore, request: StageRequest) -> TaskLinks:
    """Return the links of the task that ran ``request``. Never fails: a missing button must not fail a task."""
    try:
        record = TaskRecord.model_validate_json(store.get(record_key(request.run_id, request.task_id)))
    except FileNotFoundError:
        return TaskLinks()
    if request.tracking_uri is None or record.mlflow_run_id is None:
        return TaskLinks()
    run = mlflow_run_url(request.tracking_uri, record.mlflow_run_id)
    return TaskLinks(mlflow_run=run, report=f"{run}/artifacts/{REPORT_ARTIFACT}" if request.stage == "decide" else "")


def mlflow_run_url(tracking_uri: str, mlflow_run_id: str) -> str:
    """Return the address of a run's page. Without an answer from MLflow, its page that looks the run up."""
    base = tracking_uri.rstrip("/")
    try:
        answer = httpx.get(
            f"{base}/api/2.0/mlflow/runs/get", params={"run_id": mlflow_run_id}, timeout=SECONDS_FOR_MLFLOW
        )
        experiment = answer.raise_for_status().json()["run"]["info"]["experiment_id"]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        logger.warning("MLflow did not say where run %s is: %s", mlflow_run_id, type(error).__name__)
        return f"{base}/#/runs/{mlflow_run_id}"
    return f"{base}/#/experiments/{experiment}/runs/{mlflow_run_id}"


def _links(operator: Any) -> TaskLinks:
    return getattr(operator, "links", TaskLinks())
