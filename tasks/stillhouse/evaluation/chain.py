"""The compression chain as a table: what each step did, what it cost, and what is left after it."""

from stillhouse.contract import DISTILLED, Chain, EvaluationSummary, StepReport, Timings
from stillhouse.evaluation import phrases
from stillhouse.evaluation.tables import Cell, Row, Table, model_cell


def chain_table(chain: Chain, summary: EvaluationSummary, timings: Timings, *, described: bool = True) -> Table:
    """Return what each step did, what it cost on the validation set, and what is left on the test set.

    Args:
        chain: At least one step.
        summary: Of the evaluation on the test sets, which no step has seen.
        timings: Of the same models.
        described: Whether a column says what each step did.
    """
    home = summary.suites[0]
    did = ("did",) if described else ()
    columns = ("step", *did, "lost on validation", "outcome", phrases.metric_title(home.metric), "size", "latency p50")
    first = (model_cell(DISTILLED), *(Cell(text="the student as it was distilled") for _ in did), Cell(), Cell())
    is_first = summary.candidate == DISTILLED
    rows = [Row(cells=(*first, *_left(DISTILLED, summary, timings)), marked=is_first)]
    for step in chain.steps:
        cells = (
            model_cell(step.name),
            *(Cell(text=step.did, detail=_origin(step)) for _ in did),
            Cell(text=phrases.signed(step.drop), detail=f"{phrases.interval(step.drop)}, at most {step.max_drop:g}"),
            _outcome(step),
            *_left(step.name, summary, timings),
        )
        rows.append(Row(cells=cells, marked=step.name == summary.candidate))
    return Table(columns=columns, rows=tuple(rows))


def _origin(step: StepReport) -> str:
    return f"from {step.before}" + (f", {step.rounds} rounds" if step.rounds > 1 else "")


def _outcome(step: StepReport) -> Cell:
    if step.kept:
        return Cell(text="✓ kept", tone="pass")
    return Cell(text="✗ dropped", detail=step.reason, tone="fail")


def _left(name: str, summary: EvaluationSummary, timings: Timings) -> tuple[Cell, Cell, Cell]:
    """Return what a model is on the test set: quality, size and speed."""
    home, timing, teacher = summary.suites[0], timings.models.get(name), timings.models.get("teacher")
    score = home.score(name)
    digits = phrases.DIGITS.get(home.metric, 3)
    quality = Cell(text=phrases.figure(score, digits), detail=phrases.interval(score, digits)) if score else Cell()
    if timing is None:
        return quality, Cell(), Cell()
    smaller = f"{teacher.num_bytes / timing.num_bytes:.1f}× smaller than the teacher" if teacher else ""
    faster = f"{teacher.latency_p50_ms / timing.latency_p50_ms:.1f}× as fast as the teacher" if teacher else ""
    return (
        quality,
        Cell(text=phrases.size(timing.num_bytes), detail=smaller),
        Cell(text=f"{timing.latency_p50_ms:.1f} ms", detail=faster),
    )
