"""Stage ``announce``: MLflow gets what it lacks, and the workflow's run there its verdict and its end.

Outputs: ``announcement`` (JSON). Runs whatever happened before.
"""

from pathlib import Path

from stillhouse.contract import (
    ConfigurationError,
    Decision,
    EvaluationSummary,
    Promotion,
    StageResult,
    TaskRecord,
    Timings,
    pretty_json,
)
from stillhouse.evaluation.headline import headline_figures
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.publishing import open_tracking, publish_result
from stillhouse.stages.records import read_records, read_result, record_key
from stillhouse.store import fetch_artifact, read_artifact


def run(context: StageContext) -> StageOutcome:
    """Publish reused results, then close the workflow's MLflow run.

    Raises:
        ConfigurationError: There is no MLflow server.
        TryAgain: It does not answer.
    """
    request = context.request
    if request.tracking_uri is None:
        raise ConfigurationError("announcing needs an MLflow server: set MLFLOW_TRACKING_URI")
    tracking, workflow = open_tracking(request)
    records = {
        task_id: record
        for task_id, record in read_records(context.store, request.run_id).items()
        if record.stage != "announce"
    }
    results = {task_id: read_result(record.result) for task_id, record in records.items() if record.result is not None}
    for task_id, record in records.items():
        if record.mlflow_run_id is None and task_id in results:
            mlflow_run_id = publish_result(tracking, record, results[task_id])
            shown = record.replace(mlflow_run_id=mlflow_run_id)
            context.store.put(record_key(request.run_id, task_id), pretty_json(shown))
    failed = sorted(task_id for task_id, record in records.items() if record.state not in ("succeeded", "reused"))
    verdict, files = _verdict(results, failed, context.workspace)
    figures = _headline(results)
    if "promote" in results:
        promoted = Promotion.model_validate_json(read_artifact(results["promote"].outputs["promotion"]))
        tracking.log_version_figures(workflow, promoted.model, promoted.version, figures)
    tracking.close_workflow(
        workflow,
        succeeded=not failed and "decide" in results,
        metrics=figures,
        tags={"stillhouse.verdict": verdict, "mlflow.note.content": _note(context, records, verdict)},
        files=files,
    )
    context.save_bytes("announcement", pretty_json({"verdict": verdict, "failed": failed}), ".json")
    return StageOutcome(summary=f"{verdict}; {len(results)} results are in MLflow")


def _verdict(results: dict[str, StageResult], failed: list[str], cache: Path) -> tuple[str, dict[str, Path]]:
    decided = results.get("decide")
    if failed or decided is None:
        return f"failed in {', '.join(failed) or 'the orchestrator'}", {}
    decision = Decision.model_validate_json(read_artifact(decided.outputs["decision"]))
    return decision.verdict, {"report": fetch_artifact(decided.outputs["report"], cache)}


def _headline(results: dict[str, StageResult]) -> dict[str, float]:
    evaluated = results.get("evaluate")
    if evaluated is None:
        return {}
    return headline_figures(
        EvaluationSummary.model_validate_json(read_artifact(evaluated.outputs["summary"])),
        Timings.model_validate_json(read_artifact(evaluated.outputs["timings"])),
    )


def _note(context: StageContext, records: dict[str, TaskRecord], verdict: str) -> str:
    links = [f"[{name}]({address})" for name, address in context.request.links.items()]
    tasks = [f"- `{task_id}` {record.message}" for task_id, record in records.items()]
    return "\n".join([context.recipe.description, "", f"**{verdict}** {' '.join(links)}", "", *tasks])
