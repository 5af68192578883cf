"""From a planned task and the results before it to the request that a stage is run with."""

from collections.abc import Mapping
from typing import Any

from stillhouse.contract import Artifact, IntegrityError, ResultRef, StageRequest
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.plan import PlannedTask
from stillhouse.promotion.ledger import Ledger
from stillhouse.recipe import Recipe
from stillhouse.stages.records import read_result
from stillhouse.store import open_store


def build_request(
    task: PlannedTask,
    *,
    recipe: Recipe,
    run_id: str,
    results: Mapping[str, ResultRef],
    deployment: Deployment,
    parameters: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
) -> StageRequest:
    """Return what the stage of ``task`` is asked to do.

    Args:
        task: The planned task.
        recipe: With the run's overrides in it.
        run_id: The workflow run.
        results: References to the results of the tasks upstream, by task id.
        deployment: Where this happens.
        parameters: Further parameters, known only during the run, such as an approval.
        links: Addresses of this run for people, by name.

    Raises:
        IntegrityError: A result, or an output named by it, is missing.
    """
    inputs = {name: _output(results, *origin) for name, origin in task.inputs.items()}
    known: dict[str, Any] = {**task.parameters, **(parameters or {})}
    if task.stage == "evaluate":
        inputs |= _champion(recipe, deployment, candidate=inputs["kd"])
    if task.stage == "decide" and (champion := read_result(results["evaluate"]).inputs.get("champion")):
        known["champion_sha256"] = champion.sha256
    return StageRequest(
        stage=task.stage,
        run_id=run_id,
        task_id=task.task_id,
        recipe=recipe.model_dump(mode="json"),
        parameters=known,
        inputs=inputs,
        store=deployment.store,
        tracking_uri=deployment.tracking_uri,
        links=dict(links or {}),
    )


def _output(results: Mapping[str, ResultRef], task_id: str, output: str) -> Artifact:
    result = read_result(results[task_id])
    try:
        return result.outputs[output]
    except KeyError:
        raise IntegrityError(f"the result of {task_id} has no output '{output}'; clear that task") from None


def _champion(recipe: Recipe, deployment: Deployment, *, candidate: Artifact) -> dict[str, Artifact]:
    """Return today's champion as an input, unless there is none or the candidate is the champion itself."""
    head = Ledger(open_store(deployment.store), recipe.promotion.model).head()
    if head is None or head.artifact.sha256 == candidate.sha256:
        return {}
    return {"champion": head.artifact}
