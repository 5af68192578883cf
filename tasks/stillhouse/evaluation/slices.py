"""The slices of a suite as a table: where the candidate stands worst."""

from dataclasses import replace

from stillhouse.contract import Estimate, EvaluationSummary, Metric, SuiteSummary
from stillhouse.evaluation import phrases
from stillhouse.evaluation.tables import Cell, Row, Table, estimate_cell

MAX_SLICES = 10
"""Slices that a table lists at most."""


def slices_table(summary: EvaluationSummary, suite: SuiteSummary) -> Table:
    """Return the slices of a suite on which the candidate stands worst: against the teacher, if it was measured.

    Both figures of a slice have their own intervals; that of the difference is `stillhouse.contract.Estimate.minus`.
    """
    mine = suite.models[summary.candidate].per_slice if summary.candidate in suite.models else {}
    teacher = suite.models["teacher"].per_slice if "teacher" in suite.models else None
    judged = mine if teacher is None else {name: mine[name].minus(teacher[name]) for name in mine if name in teacher}
    sign = 1 if suite.better == "higher" else -1
    worst = sorted(judged, key=lambda name: (sign * judged[name].value, name))[:MAX_SLICES]
    rows = []
    for name in worst:
        mark = "worst" if name == worst[0] and len(judged) > 1 else ""
        cells = [replace(estimate_cell(mine[name], suite.metric), mark=mark if teacher is None else "")]
        if teacher is not None:
            cells += [estimate_cell(teacher[name], suite.metric), _difference(judged[name], suite.metric, mark=mark)]
        rows.append(Row(cells=(Cell(text=name), *cells, Cell(text=f"{mine[name].n:,}"))))
    title = phrases.metric_title(suite.metric)
    beside = [] if teacher is None else [f"teacher's {title}", f"{summary.candidate} minus teacher"]
    return Table(columns=("slice", f"{summary.candidate}'s {title}", *beside, "items"), rows=tuple(rows))


def _difference(estimate: Estimate, metric: Metric, *, mark: str) -> Cell:
    digits = phrases.DIGITS.get(metric, 3)
    text, interval = phrases.signed(estimate, digits), phrases.interval(estimate, digits)
    return Cell(text=text, detail=interval, short=f"{text} {interval}", mark=mark)
