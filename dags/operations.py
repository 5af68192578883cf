"""Airflow DAGs for operators: ``stillhouse_rollback``, started by people only, and ``stillhouse_reconcile``, daily."""

from pathlib import Path

from stillhouse.orchestration.airflow.dag import recipe_folders
from stillhouse.orchestration.airflow.operations import build_operations

globals().update(build_operations(*recipe_folders(Path(__file__).parent / "recipes")))
