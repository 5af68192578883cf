"""The columns of the run table: few, named alike for every run, and readable from left to right."""

from findings import TIMINGS, classified, language, written

from stillhouse.evaluation.headline import headline_figures


def test_a_classifiers_columns() -> None:
    summary = classified()
    figures = headline_figures(summary, TIMINGS)
    kept = [estimate.value for estimate in summary.retention.values()]
    assert figures["overall/worst_retention"] == min(kept)
    assert figures["tweets/retention"] == summary.retention["tweets"].value
    assert figures["overall/speedup"] == 1.82
    for name in ("movies/start/accuracy", "movies/kd/ece", "movies/kd/agreement", "recipes/kd/auroc_confidence"):
        assert name in figures
    assert not any(name.startswith("tweets/sft") or name.endswith("gap") for name in figures)


def test_a_language_models_columns() -> None:
    summary = language()
    figures = headline_figures(summary, TIMINGS)
    gap = summary.comparison("letters", "teacher")
    assert gap is not None
    assert figures["letters/gap"] == gap.difference.value
    assert "dialogues/kd/perplexity" in figures
    assert not any("retention" in name for name in figures)


def test_without_a_measured_teacher_nothing_is_relative_to_it() -> None:
    timings = TIMINGS.model_copy(update={"models": {"kd": TIMINGS.models["kd"]}})
    figures = headline_figures(written(), timings)
    assert "sums/unfiltered/exact_match" in figures
    assert "longer-sums/kd/exact_match" in figures
    assert not any("teacher" in name or "gap" in name or "overall" in name for name in figures)
