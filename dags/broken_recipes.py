"""Shows every recipe that can't be used as an import error of Airflow. Defines no DAG: see ``distillation.py``."""

from pathlib import Path

from stillhouse.orchestration.airflow import build_dags, recipe_folders

build_dags(*recipe_folders(Path(__file__).parent / "recipes")).raise_errors()
