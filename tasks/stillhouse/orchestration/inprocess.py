"""The whole workflow in one process, without Airflow: for development, and as the reference for every runtime."""

import logging
from collections.abc import Callable

from stillhouse.contract import Decision, ResultRef, StageResult, StillhouseError
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.plan import PlannedTask, plan
from stillhouse.orchestration.requests import build_request
from stillhouse.recipe import Recipe
from stillhouse.stages import run_stage
from stillhouse.stages.records import read_result
from stillhouse.store import read_artifact

logger = logging.getLogger(__name__)

OnTask = Callable[[PlannedTask, StageResult | None], None]


def run_workflow(
    recipe: Recipe,
    *,
    run_id: str,
    deployment: Deployment,
    on_task: OnTask = lambda task, result: None,
) -> dict[str, ResultRef]:
    """Run every task of ``recipe`` in turn and return their results by task id.

    ``promote`` is left out unless the verdict is to promote, or without an MLflow server to register the student at.
    ``announce`` comes last, also after a failure, and needs the server too.

    Args:
        recipe: What to run. The approval counts as given: whoever runs this is there.
        run_id: Name of this run.
        deployment: Where results lie.
        on_task: Called with a task before it runs, and again with its result.

    Raises:
        StillhouseError: From the stage that failed.
    """
    *tasks, announce = plan(recipe)
    results: dict[str, ResultRef] = {}

    def run(task: PlannedTask) -> None:
        on_task(task, None)
        request = build_request(task, recipe=recipe, run_id=run_id, results=results, deployment=deployment)
        results[task.task_id] = run_stage(request, work=deployment.work)
        on_task(task, read_result(results[task.task_id]))

    try:
        for task in tasks:
            if task.stage != "promote" or (deployment.tracking_uri is not None and _promotes(results["decide"])):
                run(task)
    except BaseException:
        if deployment.tracking_uri is not None:
            _announce_failure(lambda: run(announce))
        raise
    if deployment.tracking_uri is not None:
        run(announce)
    return results


def _announce_failure(announce: Callable[[], None]) -> None:
    """Close the run in MLflow; what goes wrong here must not hide why the run failed."""
    try:
        announce()
    except StillhouseError as error:
        logger.warning("the failed run stays open in MLflow: %s", error)


def _promotes(reference: ResultRef) -> bool:
    document = read_artifact(read_result(reference).outputs["decision"])
    return Decision.model_validate_json(document).verdict == "promote"
