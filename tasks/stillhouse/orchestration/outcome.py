"""The end of a workflow in the terminal, and what it means for the exit code."""

import sys
from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError
from rich.console import Console

from stillhouse.contract import (
    Artifact,
    DataRejected,
    Decision,
    EvaluationSummary,
    ExitCode,
    Promotion,
    ResultRef,
    StageResult,
    SynthesisReport,
    Timings,
)
from stillhouse.orchestration.plan import PlannedTask
from stillhouse.recipe import Config
from stillhouse.stages.chain import read_chain
from stillhouse.stages.records import read_result
from stillhouse.store import read_artifact

Document = TypeVar("Document", bound=Config)

LOG_WIDTH = 120
"""Columns where the output goes to a file, which has no width of its own."""


def result_console() -> Console:
    """Return where results are printed: as wide as the terminal, or as `LOG_WIDTH` without one."""
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH)


def print_task(task: PlannedTask, result: StageResult | None) -> None:
    """Print a line as a task begins, and one when it has ended."""
    console = Console(highlight=False)
    if result is None:
        console.print(f"[dim]▸ {task.task_id}")
    else:
        console.print(f"[green]✓[/] {task.task_id:<16} {result.seconds:7.1f} s  {result.summary}")


def show_outcome(results: Mapping[str, ResultRef]) -> ExitCode:
    """Print verdict, models, rules and the registered version of a workflow that ran to its end.

    Args:
        results: References to its results by task id, ``evaluate`` and ``decide`` among them.

    Returns:
        OK if the student serves as the champion now, NOT_PROMOTED otherwise.

    Raises:
        DataRejected: A result is not what this version of Stillhouse writes.
    """
    from stillhouse.evaluation.console import render_text

    evaluation, decided = read_result(results["evaluate"]), read_result(results["decide"])
    summary = read_document(evaluation.outputs["summary"], EvaluationSummary)
    timings = read_document(evaluation.outputs["timings"], Timings)
    decision = read_document(decided.outputs["decision"], Decision)
    console = result_console()
    synthesis = None
    if "curate" in results:
        synthesis = read_document(read_result(results["curate"]).outputs["report"], SynthesisReport)
    console.print(render_text(summary, timings, decision, synthesis, read_chain(evaluation.inputs)))
    if "promote" not in results:
        console.print("[yellow]Nothing was promoted.")
        return ExitCode.NOT_PROMOTED
    promotion = read_document(read_result(results["promote"]).outputs["promotion"], Promotion)
    console.print(
        f"[bold green]models:/{promotion.model}@champion[/] is version {promotion.version}"
        + (" already; nothing was moved" if promotion.already_champion else "")
    )
    return ExitCode.OK


def read_document(artifact: Artifact, kind: type[Document]) -> Document:
    """Return what a stage stored as JSON.

    Raises:
        DataRejected: It is not what this version of Stillhouse writes.
    """
    try:
        return kind.model_validate_json(read_artifact(artifact))
    except ValidationError:
        raise DataRejected(f"{artifact.uri}: written by another version of Stillhouse; run the recipe again") from None
