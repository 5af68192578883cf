"""Airflow reads this as it starts. What every DAG file and task needs is loaded once, before Airflow forks."""

import sys

if {"scheduler", "dag-processor"} & set(sys.argv):
    import stillhouse.orchestration.airflow
    import stillhouse.orchestration.airflow.runtimes.docker  # noqa: F401
