"""Plots of a run: loss curves, reliability, drops away from home, quality against cost. Equal evidence, equal bytes."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator, PercentFormatter

from stillhouse.contract import (
    METRICS,
    Estimate,
    EvaluationSummary,
    SynthesisReport,
    Timings,
    TraceAudit,
    TrainingHistory,
)
from stillhouse.evaluation import phrases
from stillhouse.evaluation.metrics import calibration_bins
from stillhouse.evaluation.pareto import pareto_front

MODEL_COLOURS = {
    "teacher": "#7c4a10",
    "kd": "#0b7a75",
    "unfiltered": "#a8348a",
    "sft": "#5b5fc7",
    "start": "#8a8f98",
    "champion": "#b3261e",
}
"""Every colour is also a custom property of the report's style sheet, which swaps it in dark mode."""

INK, FAINT = "#1d2126", "#c9cdd3"
OTHER_COLOUR = "#3f4650"

STYLE = {
    "font.size": 10.5,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "stillhouse",
}

WIDTH = 4.6
"""Inches of a figure: at 72 pixels an inch, as wide as a telephone."""
LINE = 13.0
"""Points between the middles of two labels that don't touch."""


@mpl.rc_context(STYLE)
def loss_curves(histories: Mapping[str, TrainingHistory]) -> dict[str, Figure]:
    """Draw each loss term over the optimizer steps, one line an arm, and return the figures by term; ``loss`` first.

    Args:
        histories: By arm, such as ``kd`` and ``sft``.
    """
    terms = {term for history in histories.values() for point in history.points for term in point.terms}
    known = [term for term in phrases.TERM_TITLES if term == "loss" or term in terms]
    return {term: _loss_curve(histories, term) for term in [*known, *sorted(terms - set(known))]}


@mpl.rc_context(STYLE)
def held_out_curves(histories: Mapping[str, TrainingHistory], *, perplexity: bool) -> dict[str, Figure]:
    """Draw the loss on the validation set over the tokens that were seen, one line an arm; empty if nobody measured it.

    Args:
        histories: By arm.
        perplexity: Also draw e to the power of the loss, on a logarithmic axis; of language models.
    """
    measured = {arm: history.validation for arm, history in histories.items() if history.validation}
    if not measured:
        return {}
    figures = {}
    for name in ("loss", *(["perplexity"] if perplexity else [])):
        figure, ax = _figure(height=2.6, width=0.7 * WIDTH)
        for arm, points in measured.items():
            losses = [point.loss for point in points]
            values = losses if name == "loss" else np.exp(losses)
            ax.plot([p.tokens for p in points], values, marker="o", markersize=3, label=arm, color=_colour(arm))
        if name == "perplexity":
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
            ax.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlabel("tokens seen")
        ax.legend(loc="upper right")
        figures[name] = figure
    return figures


def _loss_curve(histories: Mapping[str, TrainingHistory], term: str) -> Figure:
    figure, ax = _figure(height=2.4, width=0.7 * WIDTH)
    for arm, history in histories.items():
        curve = [
            (point.step, point.loss if term == "loss" else point.terms[term])
            for point in history.points
            if term == "loss" or term in point.terms
        ]
        if curve:
            ax.plot(*zip(*curve, strict=True), label=arm, color=_colour(arm))
    ax.set_xlabel("optimizer step")
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.legend(loc="upper right")
    return figure


@mpl.rc_context(STYLE)
def funnel(report: SynthesisReport) -> Figure:
    """Draw how many answers were left before the first filter and after each one."""
    left = [report.filters[0].seen, *(found.seen - found.removed for found in report.filters)]
    names = ["answered", *(f"after {found.name}" for found in report.filters)]
    figure, ax = _figure(height=0.7 + 0.34 * len(left))
    ax.barh(range(len(left)), left, color=MODEL_COLOURS["kd"], height=0.62)
    for place, count in enumerate(left):
        ax.annotate(f"{count:,}", (count, place), xytext=(4, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(left)), names)
    ax.set_ylim(len(left) - 0.5, -0.5)
    ax.set_xlim(0, 1.18 * max(left))
    ax.grid(visible=False)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)
    return figure


@mpl.rc_context(STYLE)
def compound_errors(audit: TraceAudit) -> Figure:
    """Draw the share of right answers, and of right steps, against the length of a trace, with their intervals."""
    figure, ax = _figure(height=3.6)
    curves: dict[str, tuple[str, Sequence[Estimate | None]]] = {
        "right steps": (OTHER_COLOUR, [found.step_accuracy for found in audit.by_length]),
        "right answers": (MODEL_COLOURS["teacher"], [found.accuracy for found in audit.by_length]),
    }
    for title, (colour, estimates) in curves.items():
        points = [(place, estimate) for place, estimate in enumerate(estimates) if estimate]
        if not points:
            continue
        ax.errorbar(
            [place for place, _ in points],
            [e.value for _, e in points],
            yerr=[
                [max(0.0, e.value - e.low) for _, e in points],
                [max(0.0, e.high - e.value) for _, e in points],
            ],
            marker="o",
            markersize=5,
            capsize=3,
            linewidth=1.8,
            color=colour,
            linestyle="-" if title == "right answers" else "--",
            label=title,
        )
    bins = audit.by_length
    ax.set_xticks(range(len(bins)), [f"{found.low}–{found.high}" for found in bins], rotation=30, ha="right")
    ax.set(xlabel="words of the trace", ylim=(0, 1.04), xlim=(-0.4, len(bins) - 0.6))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.legend(loc="outside upper right", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def first_wrong_steps(audit: TraceAudit) -> Figure:
    """Draw how many traces go wrong for the first time at the first step, the second and so on."""
    counts = audit.first_wrong
    figure, ax = _figure(height=3.6)
    ax.bar(range(len(counts)), counts, color=MODEL_COLOURS["teacher"], width=0.7)
    names = [str(place + 1) for place in range(len(counts))]
    ax.set_xticks(range(len(counts)), [*names[:-1], f"{names[-1]}+"])
    ax.set(xlabel="first wrong step", ylabel="traces")
    ax.grid(visible=False, axis="x")
    return figure


@mpl.rc_context(STYLE)
def reliability(records: pa.Table, summary: EvaluationSummary, *, num_bins: int) -> Figure:
    """Draw accuracy against confidence in equal-mass bins, in-domain, one line a model.

    Args:
        records: Of a classification task.
        summary: Names the models and the suite.
        num_bins: As in the calibration error.
    """
    figure, ax = _figure(height=4.4)
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--")
    in_domain = records.filter(pc.field("suite") == summary.suites[0].name)
    lowest = 1.0
    for model in summary.models:
        rows = in_domain.filter(pc.field("model") == model).sort_by("item_id")
        probabilities_N = rows["probabilities"].combine_chunks()
        num_labels = len(probabilities_N[0])
        confidences_N = probabilities_N.flatten().to_numpy().reshape(-1, num_labels).max(axis=1).astype(np.float64)
        bins_N = calibration_bins(confidences_N, num_bins)
        sizes_B = np.bincount(bins_N)
        x_B = np.bincount(bins_N, weights=confidences_N) / sizes_B
        y_B = np.bincount(bins_N, weights=rows["correct"].to_numpy(zero_copy_only=False)) / sizes_B
        lowest = min(lowest, x_B.min(), y_B.min())
        # The comparison that counts is in front; the others are there to be looked up.
        width, alpha = (2.0, 1.0) if model in ("teacher", summary.candidate) else (1.0, 0.55)
        ax.plot(x_B, y_B, marker="o", markersize=3.5, label=model, color=_colour(model), linewidth=width, alpha=alpha)
    edge = max(0.0, np.floor(lowest * 10) / 10)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(edge, 1.01), ylim=(edge, 1.01))
    ax.legend(loc="best")
    return figure


@mpl.rc_context(STYLE)
def drops_away(summary: EvaluationSummary) -> Figure:
    """Draw what teacher and candidate lose on each suite away from home, side by side with their intervals."""
    models = [model for model in ("teacher", summary.candidate) if model in summary.drops]
    suites = [suite for suite in summary.suites if suite.name in summary.drops[summary.candidate]]
    figure, ax = _figure(height=1.3 + 0.52 * len(suites))
    ax.axvline(0, color=INK, linewidth=1.0)
    for number, model in enumerate(models):
        shift = 0.3 * (number - (len(models) - 1) / 2)
        found = [(place + shift, summary.drops[model][suite.name]) for place, suite in enumerate(suites)]
        values = [drop.value for _, drop in found]
        ax.errorbar(
            values,
            [place for place, _ in found],
            xerr=[
                [max(0.0, drop.value - drop.low) for _, drop in found],
                [max(0.0, drop.high - drop.value) for _, drop in found],
            ],
            fmt="o",
            markersize=6,
            capsize=3,
            linewidth=1.6,
            color=_colour(model),
            label=model,
        )
    ax.set_yticks(range(len(suites)), [suite.name for suite in suites])
    ax.set_ylim(len(suites) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(f"{METRICS[suites[0].metric].title}: worse than on {summary.suites[0].name} by")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def quality_against(summary: EvaluationSummary, timings: Timings, cost: Literal["latency", "size"]) -> Figure:
    """Draw in-domain quality, with intervals, against a cost, and the front: the models that none beats in both.

    Better is always up: the axis of a loss is turned. The student before distillation is left out unless it is on the
    front: it costs what the student costs, and its quality would squeeze all others together.
    """
    figure, ax = _figure(height=4.0)
    suite = summary.suites[0]
    found = {name: score for name in summary.models if name in timings.models and (score := suite.score(name))}
    costs = {
        name: timings.models[name].latency_p50_ms if cost == "latency" else timings.models[name].num_bytes / 1e6
        for name in found
    }
    sign = 1 if suite.better == "higher" else -1
    front = pareto_front({name: (costs[name], sign * score.value) for name, score in found.items()})
    found = {name: score for name, score in found.items() if name != "start" or name in front}
    ax.plot(
        [costs[name] for name in front],
        [found[name].value for name in front],
        color=INK,
        linewidth=1.2,
        linestyle=":",
        drawstyle="steps-post",
    )
    for name, score in found.items():
        spans = [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]
        ax.errorbar(costs[name], score.value, yerr=spans, color=_colour(name), linewidth=1.5, capsize=3, zorder=2)
        filled = _colour(name) if name in front else "none"
        ax.scatter(costs[name], score.value, s=70, facecolor=filled, edgecolor=_colour(name), linewidth=1.8, zorder=3)
    words = "latency of one text, median (ms)" if cost == "latency" else "size of the weights (MB)"
    ax.set(xlabel=words, ylabel=f"{phrases.metric_title(suite.metric)} on {suite.name}")
    ax.set_xlim(left=0, right=1.35 * max(costs.values(), default=1.0))
    ax.margins(y=0.12)
    if sign < 0:
        ax.invert_yaxis()
    _label(figure, ax, {name: (costs[name], score.value) for name, score in found.items()})
    return figure


def to_svg(figure: Figure, *, name: str) -> str:
    """Render as SVG to be put into a page, its colours as custom properties of the page (``--ink``, ``--kd`` …).

    Args:
        figure: Drawn with the colours of this module.
        name: Distinct on the page: identifiers inside the SVG derive from it.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # matplotlib numbers its groups anew in each figure
    for variable, colour in {"ink": INK, "faint": FAINT, "other": OTHER_COLOUR, **MODEL_COLOURS}.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def _figure(*, height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Make one panel without pyplot, whose global state would leak from figure to figure."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(figure: Figure, ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Name each point: the dearest on its right, others on their left if there is room, none over another."""
    bottom, top = ax.get_ylim()
    right = ax.get_xlim()[1]
    dearest = max((x for x, _ in points.values()), default=0.0)
    points_high = 72 * 0.8 * figure.get_size_inches()[1]
    heights: dict[str, float] = {}
    for name, (x, y) in sorted(points.items(), key=lambda item: (item[1][1] - bottom) / (top - bottom)):
        side = "right" if 0.3 * right < x < dearest else "left"  # of the text that is at the point
        own = points_high * (y - bottom) / (top - bottom)
        heights[side] = max(own - 4, heights.get(side, -LINE) + LINE)
        ax.annotate(
            name,
            (x, y),
            xytext=(10 if side == "left" else -10, heights[side] - own),
            textcoords="offset points",
            ha=side,
            color=_colour(name),
            weight="bold",
            zorder=4,
        )


def _colour(model: str) -> str:
    return MODEL_COLOURS.get(model, OTHER_COLOUR)
