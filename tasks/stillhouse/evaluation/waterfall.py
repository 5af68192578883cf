"""The compression chain as a picture: quality, size and latency after each step."""

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stillhouse.contract import DISTILLED, METRICS, Chain, EvaluationSummary, Timings
from stillhouse.evaluation import phrases
from stillhouse.evaluation.plots import FAINT, INK, MODEL_COLOURS, OTHER_COLOUR, STYLE, WIDTH

KEPT, DROPPED = MODEL_COLOURS[DISTILLED], OTHER_COLOUR


@mpl.rc_context(STYLE)
def waterfall(chain: Chain, summary: EvaluationSummary, timings: Timings) -> Figure:
    """Draw quality on the test set, size and latency from the teacher down the chain; dropped steps are hollow.

    Args:
        chain: At least one step.
        summary: Of the evaluation; models that it lacks have no mark.
        timings: Of the same models.
    """
    dropped = {step.name for step in chain.steps if not step.kept}
    names = [*(["teacher"] if summary.has_teacher else []), DISTILLED, *(step.name for step in chain.steps)]
    figure = Figure(figsize=(2 * WIDTH, 1.1 + 0.36 * len(names)), layout="constrained")
    quality, size, latency = figure.subplots(1, 3, sharey=True)
    home = summary.suites[0]
    for place, name in enumerate(names):
        colour = MODEL_COLOURS["teacher"] if name == "teacher" else DROPPED if name in dropped else KEPT
        inside = "none" if name in dropped else colour
        if score := home.score(name):
            spans = [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]
            quality.errorbar(score.value, place, xerr=spans, color=colour, capsize=3, linewidth=1.5)
            quality.scatter(score.value, place, s=50, facecolor=inside, edgecolor=colour, linewidth=1.8, zorder=3)
        if timing := timings.models.get(name):
            _bar(size, place, timing.num_bytes / 1e6, colour, inside)
            _bar(latency, place, timing.latency_p50_ms, colour, inside)
    quality.set_yticks(range(len(names)), names)
    quality.set_ylim(len(names) - 0.5, -0.5)
    quality.set_title(f"{phrases.metric_title(home.metric)} on {home.name}")
    size.set_title("size (MB)")
    latency.set_title("latency (ms)")
    for ax in (quality, size, latency):
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    if METRICS[home.metric].better == "lower":
        quality.invert_xaxis()  # better is always right
    return figure


def _bar(ax: Axes, place: int, value: float, colour: str, inside: str) -> None:
    ax.barh(place, value, height=0.6, facecolor=inside, edgecolor=colour, linewidth=1.4)
    ax.annotate(f"{value:,.1f}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", color=INK)
    ax.axvline(0, color=FAINT, linewidth=0.8)
    ax.set_xlim(0, max(ax.get_xlim()[1], 1.25 * value))
