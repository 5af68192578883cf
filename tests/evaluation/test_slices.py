"""The table of slices, on the page and in the terminal."""

from io import StringIO

from findings import TIMINGS, classified, estimate, language, make_decision, make_inputs, written
from rich.console import Console

from stillhouse.contract import Estimate, EvaluationSummary
from stillhouse.evaluation import render_report, render_text
from stillhouse.evaluation.slices import MAX_SLICES, slices_table


def sliced(summary: EvaluationSummary, suite: str, **slices: dict[str, Estimate]) -> EvaluationSummary:
    """Give models slices of a suite."""
    suites = [
        found.model_copy(
            update={
                "models": {
                    model: scores.model_copy(update={"per_slice": slices.get(model, {})})
                    for model, scores in found.models.items()
                }
            }
        )
        if found.name == suite
        else found
        for found in summary.suites
    ]
    return summary.model_copy(update={"suites": tuple(suites)})


def rows_of(summary: EvaluationSummary) -> list[tuple[str, str]]:
    return [(row.cells[0].text, " ".join(c.mark for c in row.cells).strip()) for row in
            slices_table(summary, summary.suites[0]).rows]  # fmt: skip


TEACHER = {"genre=drama": estimate(0.9, n=80), "genre=war": estimate(0.7, n=120), "genre=<b>": estimate(0.8, n=12)}
STUDENT = {"genre=drama": estimate(0.8, n=80), "genre=war": estimate(0.69, n=120), "genre=<b>": estimate(0.85, n=12)}


def home_of(summary: EvaluationSummary) -> str:
    return summary.suites[0].name


def test_the_slice_furthest_behind_the_teacher_comes_first_and_is_marked() -> None:
    summary = classified()
    found = sliced(summary, home_of(summary), teacher=TEACHER, kd=STUDENT)
    assert rows_of(found) == [("genre=drama", "worst"), ("genre=war", ""), ("genre=<b>", "")]
    first = slices_table(found, found.suites[0]).rows[0].cells
    assert [cell.text for cell in first] == ["genre=drama", "0.800", "0.900", "−0.100", "80"]
    assert first[3].detail == "[−0.128, −0.072]"


def test_of_a_loss_less_is_better() -> None:
    summary = language()
    found = sliced(summary, home_of(summary), teacher=TEACHER, kd=STUDENT)
    assert [name for name, _ in rows_of(found)] == ["genre=<b>", "genre=war", "genre=drama"]


def test_without_a_teacher_the_lowest_figure_is_the_worst() -> None:
    summary = written()
    found = sliced(summary, home_of(summary), kd=STUDENT)
    assert rows_of(found) == [("genre=war", "worst"), ("genre=drama", ""), ("genre=<b>", "")]
    assert len(slices_table(found, found.suites[0]).columns) == 3


def test_at_most_ten_are_shown_and_one_alone_is_not_the_worst() -> None:
    summary = classified()
    many = {f"part={number}": estimate(0.5 + number / 100) for number in range(20)}
    found = sliced(summary, home_of(summary), teacher=dict.fromkeys(many, estimate(0.8)), kd=many)
    assert [name for name, _ in rows_of(found)] == [f"part={number}" for number in range(MAX_SLICES)]
    one = {"genre=war": estimate(0.5)}
    assert rows_of(sliced(summary, home_of(summary), teacher=one, kd=one)) == [("genre=war", "")]


def printed(summary: EvaluationSummary) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(render_text(summary, TIMINGS, make_decision(summary)))
    return console.export_text()


def test_page_and_terminal_show_slices_where_there_are_any_and_nothing_otherwise() -> None:
    summary = classified()
    assert "Slices of" not in render_report(make_inputs(summary))
    assert "slices" not in printed(summary)
    suite = next(suite.name for suite in summary.suites if suite.kind == "shifted-domain")
    page = render_report(make_inputs(sliced(summary, suite, teacher=TEACHER, kd=STUDENT)))
    assert page.count("Slices of") == 1
    assert f"Slices of {suite} where kd stands worst" in page
    assert "genre=&lt;b&gt;" in page
    home = sliced(summary, home_of(summary), teacher=TEACHER, kd=STUDENT)
    assert f"Worst slices of {home_of(summary)}" in printed(home)
    assert "−0.100 [−0.128, −0.072] worst" in printed(home)
