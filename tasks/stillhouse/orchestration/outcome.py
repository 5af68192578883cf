"""The end of a workflow in the terminal, and what it means for the exit code."""

import sys
from collections.abc import Mapping

from rich.console import Console

from stillhouse.contract import (
    Decision,
    EvaluationSummary,
    ExitCode,
    Promotion,
    ResultRef,
    StageResult,
    Timings,
)
from stillhouse.orchestration.plan import PlannedTask
from stillhouse.stages.records import read_result
from stillhouse.store import read_artifact

LOG_WIDTH = 120
"""Columns where the output goes to a file, which has no width of its own."""


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
    """
    from stillhouse.evaluation.console import render_text

    evaluation, decided = read_result(results["evaluate"]), read_result(results["decide"])
    summary = EvaluationSummary.model_validate_json(read_artifact(evaluation.outputs["summary"]))
    timings = Timings.model_validate_json(read_artifact(evaluation.outputs["timings"]))
    decision = Decision.model_validate_json(read_artifact(decided.outputs["decision"]))
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    console.print(render_text(summary, timings, decision))
    if "promote" not in results:
        console.print("[yellow]Nothing was promoted.")
        return ExitCode.NOT_PROMOTED
    document = read_artifact(read_result(results["promote"]).outputs["promotion"])
    promotion = Promotion.model_validate_json(document)
    console.print(
        f"[bold green]models:/{promotion.model}@champion[/] is version {promotion.version}"
        + (" already; nothing was moved" if promotion.already_champion else "")
    )
    return ExitCode.OK
