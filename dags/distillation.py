"""Airflow DAGs: one distillation workflow for every file in ``recipes/``, and in the folder that the
environment names as ``STILLHOUSE_RECIPES``.

A recipe that can't be used is left out here and reported by ``broken_recipes.py``: Airflow stops scheduling every DAG
of a file that has an import error.
"""

from pathlib import Path

from stillhouse.orchestration.airflow import build_dags, recipe_folders

globals().update(build_dags(*recipe_folders(Path(__file__).parent / "recipes")).dags)
