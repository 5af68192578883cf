"""The terminal shows every figure, in any width."""

from io import StringIO

import pytest
from findings import TIMINGS, classified, language, make_decision, make_synthesis, written
from rich.console import Console

from stillhouse.contract import Decision, EvaluationSummary
from stillhouse.evaluation import render_text


def printed(summary: EvaluationSummary, width: int, decision: Decision | None = None) -> str:
    console = Console(width=width, record=True, file=StringIO())
    synthesis = None if summary.has_teacher else make_synthesis()
    console.print(render_text(summary, TIMINGS, decision or make_decision(summary), synthesis))
    return console.export_text()


@pytest.mark.parametrize("summary", [classified(), language(), written()], ids=["classified", "language", "written"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_in_any_width(summary: EvaluationSummary, width: int) -> None:
    text = printed(summary, width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "REJECT" in text


def test_quality_stands_beside_its_interval() -> None:
    summary = classified()
    text = printed(summary, 120)
    for model in summary.models:
        score = summary.suites[0].score(model)
        assert score is not None
        assert f"{score.value:.3f} ±{score.high - score.value:.3f}" in text
    for part in (
        "97.8 ±2.1 %",
        "94.6 ±2.1 % worst",
        "69.6 MB",
        "4.6 / 6.5 ms",
        "✗ fail",
        "41 %",
        "! contamination",
        "AUROC",
    ):
        assert part in text


def test_a_language_model_is_told_in_nats_and_perplexity() -> None:
    text = printed(language(), 120)
    for part in ("loss (nats)", "perplexity", "3.062 ±0.044", "21.37 ±0.94", "loss minus teacher's", "+0.114 ±0.013"):
        assert part in text


def test_a_run_of_one_model_on_one_suite_is_told_too() -> None:
    summary = classified()
    home = summary.suites[0].model_copy(update={"models": {"kd": summary.suites[0].models["kd"]}})
    alone = summary.model_copy(
        update={"models": ("kd",), "suites": (home,), "comparisons": (), "retention": {}, "mean_retention": None}
    )
    assert "0.852 ±0.023" in printed(alone, 80, make_decision(summary))


def test_what_the_teacher_wrote_is_told_in_short() -> None:
    text = printed(written(), 120)
    for part in (
        "What the teacher wrote",
        "48.0 % left",
        "56.1 % [53.0, 59.2] of 2,890 traces",
        "took away most is verifier",
    ):
        assert part in text
    assert "What the teacher wrote" not in printed(classified(), 120)
