"""From a planned task and the results before it to the request that a stage is run with."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from stillhouse.contract import (
    Artifact,
    IntegrityError,
    Preflight,
    PreflightPointer,
    ResultRef,
    StageRequest,
    latest_key,
    preflight_key,
    subject_of,
)
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.plan import PlannedTask
from stillhouse.promotion.ledger import Ledger
from stillhouse.recipe import Recipe
from stillhouse.stages.chain import model_input, read_chain
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
        candidate = model_input(read_chain(inputs).candidate)
        inputs |= _champion(recipe, deployment, candidate=inputs[candidate])
    if task.stage == "decide":
        inputs |= _prediction(recipe, deployment)
        if champion := read_result(results["evaluate"]).inputs.get("champion"):
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


def _prediction(recipe: Recipe, deployment: Deployment) -> dict[str, Artifact]:
    """Return the latest preflight's prediction as an input, if there is one about the recipe as it is."""
    store = open_store(deployment.store)
    try:
        pointer = PreflightPointer.model_validate_json(store.get(latest_key(recipe.name)))
        key = preflight_key(recipe.name, pointer.key)
        document = store.get(key)
        if Preflight.model_validate_json(document).subject != subject_of(recipe):
            return {}
    except FileNotFoundError:
        return {}
    except ValidationError:
        raise IntegrityError(f"{store.uri(latest_key(recipe.name))} or what it names is damaged; remove it") from None
    return {"preflight": Artifact(uri=store.uri(key), sha256=pointer.sha256, num_bytes=len(document))}


def _champion(recipe: Recipe, deployment: Deployment, *, candidate: Artifact) -> dict[str, Artifact]:
    """Return today's champion as an input, unless there is none or the candidate is the champion itself."""
    head = Ledger(open_store(deployment.store), recipe.promotion.model).head()
    if head is None or head.artifact.sha256 == candidate.sha256:
        return {}
    return {"champion": head.artifact}
