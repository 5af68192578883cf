"""Where a recipe's models and data come from, and where its runs are shown: for people."""

import logging
import os
from urllib.parse import urlencode

import httpx

from stillhouse.recipe import Recipe
from stillhouse.stages.publishing import EXPERIMENT_PREFIX

logger = logging.getLogger(__name__)

RUN_TAG = "stillhouse.run_id"
SECONDS_FOR_MLFLOW = 5.0


def recipe_sources(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return name, origin and licence of the teacher and of every table; tables with the same origin share a line."""
    shared: dict[tuple[str, str], list[str]] = {}
    for name, table in recipe.data.named_tables().items():
        shared.setdefault((table.origin, table.licence), []).append(name)
    tables = [(", ".join(names), origin, licence) for (origin, licence), names in shared.items()]
    return [("teacher", recipe.teacher.title, recipe.teacher.licence), *tables]


def mlflow_run_url(tracking_uri: str, mlflow_run_id: str, *, page: str | None = None) -> str:
    """Return the address of a run's page; without an answer from MLflow, of the page that looks the run up.

    Args:
        tracking_uri: The server, as this process reaches it.
        mlflow_run_id: The run.
        page: The server, as browsers reach it, if that differs.
    """
    server, base = tracking_uri.rstrip("/"), (page or tracking_uri).rstrip("/")
    experiment = _ask(f"{server}/api/2.0/mlflow/runs/get", {"run_id": mlflow_run_id}, "run", "info", "experiment_id")
    return f"{base}/#/experiments/{experiment}/runs/{mlflow_run_id}" if experiment else f"{base}/#/runs/{mlflow_run_id}"


def mlflow_workflow_url(
    tracking_uri: str, recipe_name: str, run_id: str | None = None, *, page: str | None = None
) -> str:
    """Return the address of the table of a recipe's runs, or of what one workflow run put there.

    Without an answer from MLflow, it is that of its front page. For ``page`` see `mlflow_run_url`.
    """
    server, base = tracking_uri.rstrip("/"), (page or tracking_uri).rstrip("/")
    name = {"experiment_name": f"{EXPERIMENT_PREFIX}/{recipe_name}"}
    experiment = _ask(f"{server}/api/2.0/mlflow/experiments/get-by-name", name, "experiment", "experiment_id")
    if experiment is None:
        return base
    query = urlencode({"searchFilter": f"tags.`{RUN_TAG}` = '{run_id}'"})
    return f"{base}/#/experiments/{experiment}/runs" + (f"?{query}" if run_id else "")


def _ask(url: str, parameters: dict[str, str], *path: str) -> str | None:
    """Return one field of MLflow's answer. Asked by hand, since importing its client takes seconds."""
    try:
        node = (
            httpx.get(url, params=parameters, auth=_credentials(), timeout=SECONDS_FOR_MLFLOW).raise_for_status().json()
        )
        for name in path:
            node = node[name]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        logger.warning("MLflow gave no answer for a link: %s", type(error).__name__)
        return None
    return str(node)


def _credentials() -> tuple[str, str] | None:
    """Return user and password for MLflow, from the variables that its own client reads."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    return (user, password) if user and password else None
