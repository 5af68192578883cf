"""Buttons on a task's page in Airflow that lead to its run and report in MLflow."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink

from stillhouse.contract import StageRequest, TaskRecord
from stillhouse.orchestration.describe import mlflow_run_url, mlflow_workflow_url

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey

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
        """Return the address, or nothing. Airflow asks on the worker as the task ends, and stores the answer."""
        return _links(operator).mlflow_run


class ReportLink(BaseOperatorLink):
    """Leads to the evaluation report among the artifacts of MLflow."""

    name = "Report"

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """Return the address, or nothing; see `MlflowRunLink.get_link`."""
        return _links(operator).report


def task_links(request: StageRequest, record: TaskRecord | None, *, page: str | None = None) -> TaskLinks:
    """Return the links of the task that ran ``request``; ``page`` is MLflow's address in a browser, if it differs.

    What was reused gets its run in MLflow only when the workflow ends: its link leads to the place where it will be.
    """
    if request.tracking_uri is None or record is None:
        return TaskLinks()
    if record.mlflow_run_id is None:
        table = mlflow_workflow_url(request.tracking_uri, request.recipe["name"], request.run_id, page=page)
        return TaskLinks(mlflow_run=table, report=table if request.stage == "decide" else "")
    run = mlflow_run_url(request.tracking_uri, record.mlflow_run_id, page=page)
    return TaskLinks(mlflow_run=run, report=f"{run}/artifacts/{REPORT_ARTIFACT}" if request.stage == "decide" else "")


def _links(operator: Any) -> TaskLinks:
    return getattr(operator, "links", TaskLinks())
