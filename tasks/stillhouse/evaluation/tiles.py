"""The figures that stand for themselves, at the top of a report: quality, what it is set against, speed, size."""

from dataclasses import dataclass

from stillhouse.contract import CONTROLS, METRICS, EvaluationSummary, Timings
from stillhouse.evaluation import phrases


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure that stands for itself."""

    title: str
    text: str
    detail: str


def tiles(summary: EvaluationSummary, timings: Timings) -> list[Tile]:
    """Return the figures that a reader looks for first: quality, what is kept of the teacher's, speed, size."""
    home, candidate = summary.suites[0], summary.candidate
    mine = home.score(candidate)
    found = []
    if mine:
        digits = phrases.DIGITS.get(home.metric, 3)
        whom = "teacher" if summary.has_teacher else "start"
        other = home.score(whom)
        detail = phrases.interval(mine, digits) + (f" · {whom} {phrases.figure(other, digits)}" if other else "")
        title = f"{phrases.metric_title(home.metric)} on {home.name}"
        found = [Tile(title=title[:1].upper() + title[1:], text=phrases.figure(mine, digits), detail=detail)]
        found += _against_teacher(summary) if summary.has_teacher else _against_controls(summary)
    return found + _costs(timings, candidate)


def _costs(timings: Timings, candidate: str) -> list[Tile]:
    small, large = timings.models.get(candidate), timings.models.get("teacher")
    if small is None:
        return []
    latency, size = f"95th percentile {small.latency_p95_ms:.1f} ms", f"{small.parameters / 1e6:,.1f} M parameters"
    if large:
        faster = large.latency_p50_ms / small.latency_p50_ms
        latency = f"teacher {large.latency_p50_ms:.1f} ms · {faster:.2f}× faster"
        size = f"teacher {phrases.size(large.num_bytes)} · {100 * small.num_bytes / large.num_bytes:.0f} % of it"
    return [
        Tile(title="Latency of one text", text=f"{small.latency_p50_ms:.1f} ms", detail=latency),
        Tile(title="Size", text=phrases.size(small.num_bytes), detail=size),
    ]


def _against_controls(summary: EvaluationSummary) -> list[Tile]:
    """Return what the candidate gained over the first control, or over its start where there is none."""
    home = summary.suites[0]
    against = (summary.comparison(home.name, baseline) for baseline in (*reversed(CONTROLS), "start"))
    found = next((comparison for comparison in against if comparison), None)
    if found is None:
        return []
    digits = phrases.DIGITS.get(home.metric, 3)
    title = f"{METRICS[home.metric].title} minus {found.baseline}'s"
    text, detail = phrases.signed(found.difference, digits), phrases.interval(found.difference, digits)
    return [Tile(title=title[:1].upper() + title[1:], text=text, detail=detail)]


def _against_teacher(summary: EvaluationSummary) -> list[Tile]:
    home = summary.suites[0]
    if home.name in summary.retention:
        kept, worst = summary.retention[home.name], phrases.worst_kept(summary)
        detail = f"{phrases.percent_interval(kept)} %"
        if worst and worst[0] != home.name:
            detail += f" · worst on {worst[0]}: {phrases.percent(worst[1])}"
        title = f"Of the teacher's {METRICS[home.metric].title} kept"
        return [Tile(title=title, text=phrases.percent(kept), detail=detail)]
    versus, furthest = summary.comparison(home.name, "teacher"), phrases.worst_gap(summary)
    if not versus:
        return []
    detail = phrases.interval(versus.difference)
    if furthest and furthest[0] != home.name:
        detail += f" · worst on {furthest[0]}: {phrases.signed(furthest[1])}"
    title = f"{METRICS[home.metric].title} minus teacher's"
    return [Tile(title=title[:1].upper() + title[1:], text=phrases.signed(versus.difference), detail=detail)]
