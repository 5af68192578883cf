"""Plots show what they should, with equal bytes for equal evidence, in colours that the page can swap."""

import math
import re

import pytest
from findings import TIMINGS, classified, language, make_classified_records, make_synthesis
from hypothesis import given
from hypothesis import strategies as st
from imaginary import make_history

from stillhouse.contract import EvaluationSummary
from stillhouse.evaluation.pareto import pareto_front
from stillhouse.evaluation.plots import (
    MODEL_COLOURS,
    compound_errors,
    drops_away,
    first_wrong_steps,
    funnel,
    held_out_curves,
    loss_curves,
    quality_against,
    reliability,
    to_svg,
)

points = st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)


@given(points)
def test_the_front_is_all_that_nothing_beats(found: dict[str, tuple[int, int]]) -> None:
    front = pareto_front(found)

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1]

    costs = [found[name][0] for name in front]
    assert costs == sorted(set(costs))
    for name, point in found.items():
        if name in front:
            assert not any(beats(other, point) and other != point for other in found.values())
        else:
            assert any(beats(found[winner], point) for winner in front)


def test_every_term_has_its_curves() -> None:
    figures = loss_curves({"kd": make_history("ce", "kd", "hidden", "zeta"), "sft": make_history("ce")})
    assert list(figures) == ["loss", "ce", "kd", "hidden", "zeta"]
    assert [len(figure.axes[0].get_lines()) for figure in figures.values()] == [2, 2, 1, 1, 1]


def test_held_out_loss_is_drawn_over_the_tokens_that_were_seen() -> None:
    histories = {"kd": make_history("ce", held_out=True), "sft": make_history("ce")}
    figures = held_out_curves(histories, perplexity=True)
    assert list(figures) == ["loss", "perplexity"]
    (line,) = figures["perplexity"].axes[0].get_lines()
    assert list(line.get_xdata()) == [4096 * step for step in range(0, 41, 5)]
    assert line.get_ydata()[0] == pytest.approx(math.exp(9.9))
    assert list(held_out_curves(histories, perplexity=False)) == ["loss"]
    assert held_out_curves({"sft": histories["sft"]}, perplexity=True) == {}


def test_the_funnel_ends_with_what_was_kept() -> None:
    report = make_synthesis()
    (ax,) = funnel(report).axes
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == sorted(widths, reverse=True)
    assert (widths[0], widths[-1], len(widths)) == (3000, report.kept, 1 + len(report.filters))


def test_accuracy_is_drawn_against_length_with_its_interval() -> None:
    audit = make_synthesis().audit
    assert audit is not None
    (ax,) = compound_errors(audit).axes
    lines = {container.get_label(): container for container in ax.containers}
    points = lines["right answers"].lines[0]
    assert list(points.get_ydata()) == [found.accuracy.value for found in audit.by_length]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1–40", "41–80", "81–160", "161–400"]
    unchecked = [found.model_copy(update={"step_accuracy": None}) for found in audit.by_length]
    (ax,) = compound_errors(audit.model_copy(update={"by_length": tuple(unchecked)})).axes
    assert [container.get_label() for container in ax.containers] == ["right answers"]


def test_the_last_bar_of_first_wrong_steps_holds_all_later_ones() -> None:
    audit = make_synthesis().audit
    assert audit is not None
    (ax,) = first_wrong_steps(audit).axes
    assert [bar.get_height() for bar in ax.patches] == list(audit.first_wrong)
    assert ax.get_xticklabels()[-1].get_text() == "8+"


def test_reliability_follows_the_records() -> None:
    summary = classified()
    (ax,) = reliability(make_classified_records(summary), summary, num_bins=5).axes
    diagonal, *lines = ax.get_lines()
    assert diagonal.get_xdata()[0] == diagonal.get_ydata()[0]
    assert [line.get_label() for line in lines] == list(summary.models)
    assert all(len(line.get_xdata()) == 5 for line in lines)


@pytest.mark.parametrize("summary", [classified(), language()], ids=["classified", "language"])
def test_better_is_up_whatever_the_metric(summary: EvaluationSummary) -> None:
    for cost in ("latency", "size"):
        (ax,) = quality_against(summary, TIMINGS, cost).axes
        bottom, top = ax.get_ylim()
        assert (top > bottom) == (summary.suites[0].better == "higher")


def test_the_start_is_drawn_only_where_nothing_beats_it() -> None:
    def names(summary: EvaluationSummary) -> set[str]:
        (ax,) = quality_against(summary, TIMINGS, "latency").axes
        return {text.get_text() for text in ax.texts}

    summary = classified()
    assert names(summary) == {"teacher", "kd", "sft", "champion"}
    home = summary.suites[0]
    swapped = home.model_copy(update={"models": {**home.models, "start": home.models["teacher"]}})
    assert "start" in names(summary.model_copy(update={"suites": (swapped, *summary.suites[1:])}))


def test_drops_of_teacher_and_candidate_stand_side_by_side() -> None:
    summary = classified()
    (ax,) = drops_away(summary).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == list(summary.excess_drops)
    drawn = [container.lines[0] for container in ax.containers]
    for line, model in zip(drawn, ("teacher", "kd"), strict=True):
        assert list(line.get_xdata()) == [summary.drops[model][name].value for name in summary.excess_drops]


def test_equal_evidence_gives_equal_svg_in_the_colours_of_the_page() -> None:
    first, again = (to_svg(quality_against(classified(), TIMINGS, "size"), name="x") for _ in range(2))
    assert first == again
    assert first.startswith("<svg")
    assert "var(--kd)" in first
    assert not any(colour in first for colour in MODEL_COLOURS.values())
    assert not re.search(r"<svg[^>]* (width|height)=", first)
