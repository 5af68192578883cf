"""The DAG ``stillhouse_reap``: containers of a Docker engine that nobody waits for any more."""

import logging
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, CronTriggerTimetable

from stillhouse.contract import ConfigurationError
from stillhouse.orchestration.deployment import runtime_from_environment
from stillhouse.orchestration.runtimes import DockerRuntime

logger = logging.getLogger(__name__)

REAP = "stillhouse_reap"
OFTEN = "*/15 * * * *"

REAP_DOC = """Stops containers that ran for longer than their task may, and removes those whose end nobody read.

Airflow does both itself, except where it lost a worker, or a run was deleted. Touches only containers of Stillhouse.
"""


def reap_dag(**common: Any) -> DAG:
    """Build the DAG, with what all DAGs for operators have in common."""
    dag = DAG(
        dag_id=REAP,
        description="Containers that nobody waits for",
        doc_md=REAP_DOC,
        schedule=CronTriggerTimetable(OFTEN, timezone="UTC"),
        allowed_run_types=["manual", "scheduled"],
        **common,
    )
    PythonOperator(
        dag=dag,
        task_id="reap",
        doc_md=REAP_DOC,
        python_callable=reap_containers,
        execution_timeout=timedelta(minutes=30),
    )
    return dag


def reap_containers() -> None:
    """Reap what nobody waits for on the deployment's engine, and log it."""
    from stillhouse.orchestration.reaper import reap

    runtime = runtime_from_environment()
    if not isinstance(runtime, DockerRuntime):
        raise ConfigurationError(f"runtime {runtime.kind} has no containers to reap; this is for runtime docker")
    for reaped in reap(runtime):
        logger.info("%s", reaped)
