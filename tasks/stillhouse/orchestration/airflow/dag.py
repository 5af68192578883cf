"""From a recipe file to a DAG."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, CronTriggerTimetable

from stillhouse.orchestration.airflow.approval import PromotionApproval
from stillhouse.orchestration.airflow.docs import APPROVE_DOC, STAGE_DOCS, describe_recipe
from stillhouse.orchestration.airflow.exits import RETRY_POLICY
from stillhouse.orchestration.airflow.params import recipe_params
from stillhouse.orchestration.airflow.runtimes import operator_class
from stillhouse.orchestration.airflow.stage import APPROVE_TASK, StageOperator
from stillhouse.orchestration.deployment import runtime_from_environment
from stillhouse.orchestration.places import airflow_place, model_asset
from stillhouse.orchestration.plan import PlannedTask, plan
from stillhouse.orchestration.runtimes import ContainerRuntime, Runtime
from stillhouse.recipe import Recipe, RecipeError, ScheduleConfig, StageName, load_recipe

logger = logging.getLogger(__name__)

START = datetime(2026, 1, 1, tzinfo=UTC)
"""Before any run: without catch-up, the first run is the next one that the cron schedule names."""

FIRST_RETRY = timedelta(seconds=10)
LAST_RETRY = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class RecipeDags:
    """What became of a folder of recipes."""

    dags: dict[str, DAG] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    """One line for each recipe file that can't be used: file, field, and what is allowed."""

    def raise_errors(self) -> None:
        """Raise `RecipeError` with every line, if there is any."""
        if self.errors:
            raise RecipeError("\n".join(self.errors))


def recipe_folders(shipped: Path, environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return where recipes lie: the folder beside the DAG files, and one named by ``STILLHOUSE_RECIPES``."""
    further = environment.get("STILLHOUSE_RECIPES")
    return (shipped, Path(further)) if further else (shipped,)


def build_dags(*folders: Path) -> RecipeDags:
    """Build the DAG of every ``*.yaml`` in ``folders``. A file that can't be used costs only its own DAG."""
    dags: dict[str, DAG] = {}
    errors = []
    for file in [file for folder in folders for file in sorted(folder.glob("*.yaml"))]:
        try:
            dag = build_dag(file)
            if dag.dag_id in dags:
                raise RecipeError(f"{file}: name: '{dag.dag_id}' is already the name of another recipe")
        except RecipeError as error:
            errors.append(str(error))
        else:
            dags[dag.dag_id] = dag
    return RecipeDags(dags=dags, errors=tuple(errors))


def build_dag(recipe_file: Path) -> DAG:
    """Build the DAG of one recipe file.

    Raises:
        RecipeError: The recipe can't be used, or Airflow refuses its schedule.
    """
    recipe = load_recipe(recipe_file)
    try:
        dag = _empty_dag(recipe)
        dag.timetable.validate()
    except Exception as error:
        # Which exception a bad cron line or asset address raises is up to Airflow and its providers.
        raise RecipeError(f"{recipe_file}: schedule: {' '.join(str(error).split())}") from None
    _add_tasks(dag, recipe, str(recipe_file))
    return dag


def _empty_dag(recipe: Recipe) -> DAG:
    return DAG(
        dag_id=recipe.name,
        description=recipe.description,
        doc_md=describe_recipe(recipe),
        schedule=_schedule(recipe.schedule),
        start_date=START,
        catchup=False,
        max_active_runs=1,
        params=recipe_params(recipe),
        tags=["distillation", recipe.task],
        default_args={"owner": "stillhouse", "retry_exponential_backoff": True, "max_retry_delay": LAST_RETRY},
        # Only files that find DAGs by name should own them: a second file may build the same recipe to check it.
        auto_register=False,
    )


def _schedule(schedule: ScheduleConfig) -> Any:
    assets = [Asset(uri) for uri in schedule.assets]
    cron = CronTriggerTimetable(schedule.cron, timezone="UTC") if schedule.cron else None
    if cron and assets:
        return AssetOrTimeSchedule(timetable=cron, assets=assets)
    return cron or assets or None


def _add_tasks(dag: DAG, recipe: Recipe, recipe_file: str) -> None:
    planned, runtime = plan(recipe), runtime_from_environment()
    operators: dict[str, Any] = {}
    for task in planned:
        airflow_task, _ = airflow_place(task.task_id)
        if airflow_task not in operators:
            shards = [other.task_id for other in planned if airflow_place(other.task_id)[0] == airflow_task]
            operators[airflow_task] = _operator(
                runtime, recipe, task, airflow_task, shards, dag=dag, recipe_file=recipe_file
            )
    operators[APPROVE_TASK] = PromotionApproval(
        dag=dag,
        task_id=APPROVE_TASK,
        recipe_file=recipe_file,
        doc_md=APPROVE_DOC,
        **_tries(recipe, "decide"),
    )
    for name, upstream in graph_edges(recipe).items():
        operators[name].set_upstream([operators[up] for up in upstream])
    operators["announce"].as_teardown()


def graph_edges(recipe: Recipe) -> dict[str, list[str]]:
    """Return the upstream tasks of each Airflow task, without those that others of them wait for anyway."""
    upstream: dict[str, list[str]] = {}
    for task in plan(recipe):
        places = upstream.setdefault(airflow_place(task.task_id)[0], [])
        places += [place for place, _ in map(airflow_place, task.upstream) if place not in places]
    upstream[APPROVE_TASK] = ["decide"]
    upstream["promote"].append(APPROVE_TASK)

    def before(name: str) -> set[str]:
        return {name, *(earlier for up in upstream[name] for earlier in before(up))}

    edges = {
        name: [up for up in ups if not any(up in before(other) for other in ups if other != up)]
        for name, ups in upstream.items()
    }
    # A failed arm fails the promotion at once, while the other arm may still be training: the last word waits for both.
    edges["announce"] += [f"distill-{arm}" for arm in recipe.arms]
    return edges


def _operator(
    runtime: Runtime, recipe: Recipe, task: PlannedTask, airflow_task: str, shards: list[str], **where: Any
) -> Any:
    operator = operator_class(StageOperator, runtime)
    common = {
        **where,
        "task_id": airflow_task,
        "doc_md": STAGE_DOCS[task.stage],
        "execution_timeout": timedelta(hours=recipe.resources.of(task.stage).timeout_hours),
        **_tries(recipe, task.stage),
        **_pool(runtime, recipe, task.stage),
    }
    if task.stage in ("teach", "generate"):
        together = runtime.max_parallel if isinstance(runtime, ContainerRuntime) else None
        return operator.partial(
            **common, map_index_template="{{ task.planned_task }}", max_active_tis_per_dag=together
        ).expand(planned_task=shards)
    made = [Asset(model_asset(recipe.promotion.model))] if task.stage == "promote" else []
    return operator(**common, planned_task=task.task_id, outlets=made)


def _pool(runtime: Runtime, recipe: Recipe, stage: StageName) -> dict[str, Any]:
    """Return how many accelerators a task waits for. Airflow must know the pool: an unknown one never frees a slot."""
    resources = recipe.resources.of(stage)
    if not (isinstance(runtime, ContainerRuntime) and runtime.gpu_pool and resources.gpus):
        return {}
    return {"pool": runtime.gpu_pool, "pool_slots": resources.gpus * resources.nodes}


def _tries(recipe: Recipe, stage: StageName) -> dict[str, Any]:
    retries = recipe.resources.of(stage).retries
    return {"retries": retries, "retry_delay": FIRST_RETRY, "retry_policy": RETRY_POLICY}
