"""Operations as DAGs: rollback when a person asks for it, reconciliation every day."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Context, CronTriggerTimetable, Param
from airflow.sdk.exceptions import AirflowSkipException

from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.airflow.dag import FIRST_RETRY, LAST_RETRY, START
from stillhouse.orchestration.airflow.exits import RETRY_POLICY, error_of_exit
from stillhouse.orchestration.airflow.reaping import REAP, reap_dag
from stillhouse.orchestration.airflow.runtimes import operator_class
from stillhouse.orchestration.airflow.stage import run_id_of
from stillhouse.orchestration.containers import check_memory, operation_task
from stillhouse.orchestration.deployment import Deployment, runtime_from_environment
from stillhouse.orchestration.runtimes import DockerRuntime
from stillhouse.recipe import RecipeError, load_recipe
from stillhouse.recipe.base import NAME_PATTERN

ROLLBACK = "stillhouse_rollback"
RECONCILE = "stillhouse_reconcile"
EVERY_DAY = "40 4 * * *"
NOBODY = "unknown, through Airflow"
"""Who rolls back where Airflow does not say who triggered the run."""

_COMMON: dict[str, Any] = {
    "start_date": START,
    "catchup": False,
    "max_active_runs": 1,
    "tags": ["operations"],
    "default_args": {"owner": "stillhouse", "retry_exponential_backoff": True, "max_retry_delay": LAST_RETRY},
    "auto_register": False,
}
_TRIES: dict[str, Any] = {
    "retries": 2,
    "retry_delay": FIRST_RETRY,
    "retry_policy": RETRY_POLICY,
    "execution_timeout": timedelta(minutes=30),
}

ROLLBACK_DOC = """Makes an earlier champion the champion again: for when the present one turns out to be bad.

The version is loaded back and its files are checked before anything is moved. The ledger keeps the reason and who
asked. Without a version it goes back to the champion before today's; a second rollback in a row must name one.
"""
RECONCILE_DOC = """Compares the model registry with the ledger of promotions.

Finishes or annuls what a killed process left half done. Fails (exit code 65) if somebody moved `champion` by hand, the
champion is gone from the registry, or the ledger was changed: then a person must look, and nothing is moved.
"""


class OperationOperator(ContainerOperator):
    """Runs a command of ``stillhouse`` apart from Airflow, which loads neither MLflow nor a model."""

    ui_color = "#e3dcec"

    def arguments(self, context: Context) -> tuple[str, ...]:
        """Return the command and its arguments."""
        raise NotImplementedError

    def execute(self, context: Context) -> None:
        """Run the command.

        Raises:
            AirflowSkipException: There is no MLflow server.
            StillhouseError: What went wrong; see `stillhouse.orchestration.airflow.exits` for what is tried again.
        """
        deployment = Deployment.from_environment()
        if deployment.tracking_uri is None:
            raise AirflowSkipException("no MLflow server in this deployment: set MLFLOW_TRACKING_URI")
        task = operation_task(self.arguments(context), deployment, run_id=run_id_of(context))
        ended = self.run_container(context, task, deployment)
        check_memory(task, ended)
        if ended.exit_code != 0:
            message = "" if ended.killed else ended.last_line.strip().removeprefix("stillhouse: ")
            raise error_of_exit(ended.exit_code, message)


class RollbackOperator(OperationOperator):
    """Rolls back as the run's parameters say, in the name of who triggered it."""

    def arguments(self, context: Context) -> tuple[str, ...]:
        """Return the command and its arguments."""
        params = context["params"]
        who = context["dag_run"].triggering_user_name or NOBODY
        to = () if params["version"] is None else (f"--to={params['version']}",)
        return ("rollback", params["model"], f"--reason={params['reason']}", f"--by={who}", *to)


class ReconcileOperator(OperationOperator):
    """Reconciles one registered model.

    Args:
        model: Its name.
    """

    def __init__(self, *, model: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model

    def arguments(self, context: Context) -> tuple[str, ...]:
        """Return the command and its arguments."""
        return ("reconcile", self.model, "--repair" if context["params"]["repair"] else "--no-repair")


def build_operations(*folders: Path) -> dict[str, DAG]:
    """Build the DAGs for operators of the house.

    They are ``stillhouse_rollback`` and ``stillhouse_reconcile``, and with the runtime ``docker`` ``stillhouse_reap``.

    Args:
        folders: Where recipes lie. The models that they promote are offered, and reconciled.
    """
    models = promoted_models(*folders)
    dags = {ROLLBACK: _rollback_dag(models), RECONCILE: _reconcile_dag(models)}
    if isinstance(runtime_from_environment(), DockerRuntime):
        dags[REAP] = reap_dag(**_COMMON)
    return dags


def promoted_models(*folders: Path) -> list[str]:
    """Return the registered models that the recipes in ``folders`` promote to. What is no recipe is left out."""
    models = set()
    for file in [file for folder in folders for file in folder.glob("*.yaml")]:
        with suppress(RecipeError):  # shown by ``broken_recipes.py``
            models.add(load_recipe(file).promotion.model)
    return sorted(models)


def _rollback_dag(models: list[str]) -> DAG:
    dag = DAG(
        dag_id=ROLLBACK,
        description="Back to an earlier champion",
        doc_md=ROLLBACK_DOC,
        schedule=None,
        allowed_run_types=["manual"],
        params={
            "model": Param(type="string", pattern=NAME_PATTERN.pattern, examples=models, title="Registered model"),
            "reason": Param(type="string", pattern=r"\S", title="Reason", description="The ledger keeps it."),
            "version": Param(
                None,
                type=["null", "integer"],
                minimum=1,
                title="Version",
                description="To go back to. Empty: the champion before today's.",
            ),
        },
        **_COMMON,
    )
    operator_class(RollbackOperator, runtime_from_environment())(
        dag=dag, task_id="rollback", doc_md=ROLLBACK_DOC, **_TRIES
    )
    return dag


def _reconcile_dag(models: list[str]) -> DAG:
    dag = DAG(
        dag_id=RECONCILE,
        description="Model registry against ledger",
        doc_md=RECONCILE_DOC,
        schedule=CronTriggerTimetable(EVERY_DAY, timezone="UTC"),
        allowed_run_types=["manual", "scheduled"],
        params={
            "models": Param(models, type="array", items={"type": "string"}, title="Registered models"),
            "repair": Param(True, type="boolean", title="Repair", description="Put right what was left half done."),
        },
        **_COMMON,
    )
    chosen = PythonOperator(
        dag=dag, task_id="models", python_callable=chosen_models, doc_md="Reads the run's parameter `models`."
    )
    operator_class(ReconcileOperator, runtime_from_environment()).partial(
        dag=dag, task_id="reconcile", doc_md=RECONCILE_DOC, map_index_template="{{ task.model }}", **_TRIES
    ).expand(model=chosen.output)
    return dag


def chosen_models(params: Mapping[str, Any]) -> list[str]:
    """Return the registered models that a run of ``stillhouse_reconcile`` is about."""
    return list(params["models"])
