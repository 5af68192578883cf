"""Recipes as Airflow DAGs. Importing this needs Airflow and nothing heavier."""

from stillhouse.orchestration.airflow.approval import PromotionApproval
from stillhouse.orchestration.airflow.dag import RecipeDags, build_dag, build_dags, recipe_folders
from stillhouse.orchestration.airflow.exits import RETRY_POLICY, StageKilled, error_of_exit
from stillhouse.orchestration.airflow.params import recipe_of_run, recipe_params
from stillhouse.orchestration.airflow.stage import StageOperator

__all__ = [
    "RETRY_POLICY",
    "PromotionApproval",
    "RecipeDags",
    "StageKilled",
    "StageOperator",
    "build_dag",
    "build_dags",
    "error_of_exit",
    "recipe_folders",
    "recipe_of_run",
    "recipe_params",
]
