"""Plots of a run: loss curves, reliability, quality against latency. Equal evidence gives equal bytes."""

import io
import re
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stillhouse.contract import EvaluationSummary, Timings, TrainingHistory
from stillhouse.evaluation.metrics import calibration_bins

MODEL_COLOURS = {
    "teacher": "#7c4a10",
    "kd": "#0b7a75",
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

LABEL_DISTANCE = 0.02
"""Accuracies closer than this would have their labels overlap."""

TERM_TITLES = {
    "loss": "Loss that is minimised",
    "ce": "Cross-entropy with the labels",
    "kd": "Divergence from the teacher (T²·KL)",
    "hidden": "Hidden states (cosine distance)",
}


@mpl.rc_context(STYLE)
def loss_curves(histories: Mapping[str, TrainingHistory]) -> Figure:
    """Draw each loss term over the optimizer steps, one panel a term, one line an arm.

    Args:
        histories: By arm, such as ``kd`` and ``sft``.
    """
    terms = list(dict.fromkeys(term for h in histories.values() for point in h.points for term in point.terms))
    panels = ["loss", *(term for term in TERM_TITLES if term in terms), *(t for t in terms if t not in TERM_TITLES)]
    figure, axes = _figure(len(panels), height=3.1)
    for ax, term in zip(axes, panels, strict=True):
        for arm, history in histories.items():
            curve = [
                (point.step, point.loss if term == "loss" else point.terms[term])
                for point in history.points
                if term == "loss" or term in point.terms
            ]
            if curve:
                ax.plot(*zip(*curve, strict=True), label=arm, color=_colour(arm))
        ax.set_title(TERM_TITLES.get(term, term))
        ax.set_xlabel("optimizer step")
        ax.set_ylim(bottom=0)
    axes[0].legend(loc="upper right")
    return figure


@mpl.rc_context(STYLE)
def reliability(records: pa.Table, summary: EvaluationSummary, *, num_bins: int) -> Figure:
    """Draw accuracy against confidence in equal-mass bins, in-domain, one line a model.

    Args:
        records: See `stillhouse.evaluation.records.SCHEMA`.
        summary: Names the models and the suite.
        num_bins: As in the calibration error.
    """
    figure, (ax,) = _figure(1, height=4.2, width=5.0)
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle="--", label="perfectly calibrated")
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
        y_B = np.bincount(bins_N, weights=rows["correct"].to_numpy()) / sizes_B
        lowest = min(lowest, x_B.min(), y_B.min())
        ax.plot(x_B, y_B, marker="o", markersize=3.5, label=model, color=_colour(model))
    edge = max(0.0, np.floor(lowest * 10) / 10)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(edge, 1.01), ylim=(edge, 1.01))
    ax.legend(loc="best")
    return figure


@mpl.rc_context(STYLE)
def quality_against_latency(summary: EvaluationSummary, timings: Timings) -> Figure:
    """Draw in-domain accuracy, with intervals, against latency; the area of a dot is the model's size."""
    figure, (ax,) = _figure(1, height=4.2, width=5.0)
    suite = summary.suites[0]
    largest = max(timing.num_bytes for timing in timings.models.values())
    widest = max(timing.latency_p50_ms for timing in timings.models.values())
    placed: list[tuple[float, float]] = []
    for model in sorted(set(timings.models) & set(suite.models), key=lambda name: suite.models[name].accuracy.value):
        timing, quality = timings.models[model], suite.models[model].accuracy
        x, y = timing.latency_p50_ms, quality.value
        ax.errorbar(
            x, y, yerr=[[y - quality.low], [quality.high - y]], color=_colour(model), linewidth=1.4, capsize=3, zorder=2
        )
        ax.scatter(x, y, s=40 + 320 * timing.num_bytes / largest, color=_colour(model), alpha=0.75, zorder=3)
        # Students often sit on the same spot: each label goes above the one before it.
        crowd = sum(abs(x - left) < 0.2 * widest and abs(y - below) < LABEL_DISTANCE for left, below in placed)
        placed.append((x, y))
        ax.annotate(
            model,
            (x, y),
            xytext=(12, 6 + 12 * crowd),
            textcoords="offset points",
            color=_colour(model),
            weight="bold",
            zorder=4,
        )
    ax.set(xlabel="latency of one text, median (ms)", ylabel=f"accuracy on {suite.name}")
    ax.set_xlim(left=0, right=1.25 * widest)
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


def to_png(figure: Figure) -> bytes:
    """Render as PNG on white, at twice the usual resolution."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


def _figure(num_panels: int, *, height: float, width: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Make a row of panels without pyplot, whose global state would leak from figure to figure."""
    figure = Figure(figsize=(width * num_panels, height), layout="constrained")
    return figure, list(figure.subplots(1, num_panels, squeeze=False)[0])


def _colour(model: str) -> str:
    return MODEL_COLOURS.get(model, OTHER_COLOUR)
