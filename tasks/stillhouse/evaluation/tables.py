"""What the tables of a report say, whatever they are drawn with: the page, Markdown or the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from stillhouse.contract import (
    METRICS,
    Comparison,
    Decision,
    Estimate,
    EvaluationSummary,
    Metric,
    RuleOutcome,
    SuiteSummary,
    Timings,
)
from stillhouse.evaluation import phrases
from stillhouse.evaluation.phrases import NOTHING

FIDELITY: tuple[Metric, ...] = ("agreement", "kl", "overlap")
CALIBRATION: tuple[Metric, ...] = ("ece", "ece_scaled", "brier", "nll")
MAX_LABELS = 10
"""Labels that a table of recalls lists at most."""

NARROW, WIDE = 8.0, 92.0
"""Where the marks of an interval's bar lie at most, on a line from 0 to 100."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry."""

    text: str = NOTHING
    detail: str = ""
    """Small print: an interval, or what something means."""
    short: str = ""
    """Text and detail in one, where room is scarce; by default the text."""
    tone: str = ""
    """``pass``, ``fail``, ``inconclusive`` or ``warn``, for an outcome."""
    mark: str = ""
    """A word that makes the entry stand out, such as ``worst``."""
    model: str = ""
    """The model whose colour goes with it."""
    bar: Mapping[str, float] | None = None
    """``low``, ``value``, ``high`` and ``bound`` on a line from 0 to 100."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line; the candidate's is marked."""

    cells: tuple[Cell, ...]
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Titles and lines of equal length; the first entry of a line names it."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure that stands for itself."""

    title: str
    text: str
    detail: str


def tiles(summary: EvaluationSummary, timings: Timings) -> list[Tile]:
    """Return the figures that a reader looks for first: quality, what is kept of the teacher's, speed, size."""
    home, candidate = summary.suites[0], summary.candidate
    mine, teacher = home.score(candidate), home.score("teacher")
    found = []
    if mine and teacher:
        digits = phrases.DIGITS.get(home.metric, 3)
        detail = f"{phrases.interval(mine, digits)} · teacher {phrases.figure(teacher, digits)}"
        title = f"{phrases.metric_title(home.metric)} on {home.name}"
        found = [Tile(title=title[:1].upper() + title[1:], text=phrases.figure(mine, digits), detail=detail)]
        found += _against_teacher(summary)
    if candidate in timings.models and "teacher" in timings.models:
        small, large = timings.models[candidate], timings.models["teacher"]
        faster = f"teacher {large.latency_p50_ms:.1f} ms · {large.latency_p50_ms / small.latency_p50_ms:.2f}× faster"
        share = f"teacher {phrases.size(large.num_bytes)} · {100 * small.num_bytes / large.num_bytes:.0f} % of it"
        found.append(Tile(title="Latency of one text", text=f"{small.latency_p50_ms:.1f} ms", detail=faster))
        found.append(Tile(title="Size", text=phrases.size(small.num_bytes), detail=share))
    return found


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


def rules_table(decision: Decision) -> Table:
    """Return every rule with what was found, its bound, n and power; what fails comes first."""
    order = ("fail", "inconclusive", "pass")
    with_power = any(rule.power is not None for rule in decision.rules)
    columns = ("requirement", "found", "bound", "items", *(["power"] if with_power else []), "outcome", "why")
    rows = []
    for rule in sorted(decision.rules, key=lambda rule: order.index(rule.outcome)):
        power = [Cell(text=NOTHING if rule.power is None else f"{100 * rule.power:.0f} %")] if with_power else []
        cells = (
            Cell(text=rule.requirement, detail=rule.rule),
            _estimate(rule.value, bar=_rule_bar(rule)),
            Cell(text=NOTHING if rule.bound is None else phrases.number(rule.bound)),
            Cell(text=f"{rule.value.n:,}" if rule.value else NOTHING),
            *power,
            _outcome(rule.outcome),
            Cell(text=rule.reason),
        )
        rows.append(Row(cells=cells))
    return Table(columns=columns, rows=tuple(rows))


def integrity_table(decision: Decision) -> Table:
    """Return what was checked before any figure counted."""
    rows = (
        Row(
            cells=(
                Cell(text=check.name, detail=phrases.CHECK_MEANINGS.get(check.name, "")),
                _outcome(check.outcome),
                Cell(text=check.detail),
            )
        )
        for check in decision.checks
    )
    return Table(columns=("check", "outcome", "found"), rows=tuple(rows))


def models_table(summary: EvaluationSummary, timings: Timings) -> Table:
    """Return in-domain quality, how it stands to the teacher's, size and speed of every model."""
    home = summary.suites[0]
    shown = _measured(home, (home.metric, *(("perplexity",) if home.metric == "nll" else ())))
    titles = (*(phrases.metric_title(metric) for metric in shown), phrases.kept_title(summary, home.name))
    rows = []
    for model in summary.models:
        timing = timings.models.get(model)
        cells = (
            _model(model, described=True),
            *_scores(home, model, shown),
            Cell(text=phrases.kept_by(summary, home.name, model)),
            Cell(text=phrases.size(timing.num_bytes), detail=f"{timing.parameters / 1e6:,.1f} M parameters")
            if timing
            else Cell(),
            Cell(text=f"{timing.latency_p50_ms:.1f} / {timing.latency_p95_ms:.1f} ms") if timing else Cell(),
            Cell(text=f"{timing.throughput:,.0f}") if timing else Cell(),
        )
        rows.append(Row(cells=cells, marked=model == summary.candidate))
    return Table(columns=("model", *titles, "size", "latency p50 / p95", "texts/s"), rows=tuple(rows))


def suites_table(summary: EvaluationSummary) -> Table:
    """Return the models on every suite but the out-of-scope ones, what is kept there, and which suite is worst."""
    suites = [suite for suite in summary.suites if suite.kind != "out-of-scope"]
    bars = _bars(summary.retention, 1.0) or _bars(phrases.gaps(summary), 0.0)
    worst = phrases.worst_kept(summary) or phrases.worst_gap(summary)
    rows = []
    for suite in suites:
        kept = Cell(
            text=phrases.kept_by(summary, suite.name, summary.candidate),
            bar=bars.get(suite.name),
            mark="worst" if worst and worst[0] == suite.name and len(suites) > 1 else "",
        )
        models = (_estimate(suite.score(model), suite.metric) for model in summary.models)
        rows.append(Row(cells=(_suite(suite), *models, kept)))
    if summary.mean_retention is not None and len(summary.retention) > 1:
        blanks = [Cell(text="")] * len(summary.models)
        mean = Cell(text=phrases.half_width_percent(summary.mean_retention))
        rows.append(Row(cells=(Cell(text="mean of the shares", detail="every suite counts alike"), *blanks, mean)))
    kept_title = f"{summary.candidate} keeps" if summary.retention else f"{summary.candidate} minus teacher"
    return Table(columns=("suite", *summary.models, kept_title), rows=tuple(rows))


def comparisons_table(summary: EvaluationSummary, suite: str) -> Table:
    """Return the candidate against every other model on one suite: difference, p-values, flips."""
    found = [c for c in summary.comparisons if c.suite == suite]
    flips = any(c.flips_lost for c in found)
    columns = (f"{summary.candidate} against", "difference", "p", "p, corrected")
    return Table(
        columns=(*columns, *(("flips lost", "flips won") if flips else ())),
        rows=tuple(Row(cells=_comparison(c, flips=flips)) for c in found),
    )


def metrics_table(
    summary: EvaluationSummary,
    suite: SuiteSummary,
    metrics: Iterable[Metric] = tuple(METRICS),
    *,
    all_of_it: bool = False,
) -> Table:
    """Return those of the metrics that were measured on a suite, for every model that has one of them.

    Args:
        summary: Names the models.
        suite: What to show.
        metrics: Columns, where any model has them.
        all_of_it: Also say how many texts were cut, and what was lost since the in-domain suite.
    """
    shown = _measured(suite, metrics)
    with_drop = all_of_it and any(suite.name in drops for drops in summary.drops.values())
    rows = []
    for model in summary.models:
        scores = suite.models.get(model)
        if scores is None or not any(metric in scores.metrics for metric in shown):
            continue
        drop = [_estimate(summary.drops.get(model, {}).get(suite.name), suite.metric)] if with_drop else []
        cut = [Cell(text=f"{scores.truncated:,}")] if all_of_it else []
        cells = (_model(model), *_scores(suite, model, shown), *drop, *cut)
        rows.append(Row(cells=cells, marked=model == summary.candidate))
    titles = (phrases.metric_title(metric) for metric in shown)
    drop_title = [f"drop from {summary.suites[0].name}"] if with_drop else []
    return Table(columns=("model", *titles, *drop_title, *(["cut"] if all_of_it else [])), rows=tuple(rows))


def drops_table(summary: EvaluationSummary) -> Table:
    """Return what teacher and candidate lose on each suite away from home, and what the candidate loses beyond it."""
    excess = summary.excess_drops
    worst = max(excess, key=lambda name: (excess[name].value, name), default=None)
    bars = _bars(excess, 0.0)
    rows = []
    for suite in summary.suites:
        if suite.name not in excess:
            continue
        teacher, mine = (summary.drops.get(m, {}).get(suite.name) for m in ("teacher", summary.candidate))
        beyond = _estimate(excess[suite.name], suite.metric, bar=bars.get(suite.name))
        mark = "worst" if suite.name == worst and len(excess) > 1 else ""
        cells = (
            _suite(suite),
            _estimate(teacher, suite.metric),
            _estimate(mine, suite.metric),
            Cell(text=beyond.text, detail=beyond.detail, short=beyond.short, bar=beyond.bar, mark=mark),
        )
        rows.append(Row(cells=cells))
    titles = ("teacher's drop", f"{summary.candidate}'s drop", "beyond the teacher's")
    return Table(columns=("suite", *titles), rows=tuple(rows))


def labels_table(summary: EvaluationSummary, suite: SuiteSummary) -> Table:
    """Return the recall of the labels that the candidate misses most, the worst first."""
    mine = suite.models[summary.candidate].per_label if summary.candidate in suite.models else {}
    teacher = suite.models["teacher"].per_label if "teacher" in suite.models else {}
    worst = sorted(mine, key=lambda label: (mine[label].value, label))[:MAX_LABELS]
    rows = (
        Row(
            cells=(
                Cell(text=label),
                _estimate(mine[label]),
                _estimate(teacher.get(label)),
                Cell(text=f"{mine[label].n:,}"),
            )
        )
        for label in worst
    )
    return Table(columns=("label", f"{summary.candidate}'s recall", "teacher's recall", "items"), rows=tuple(rows))


def costs_table(seconds: Mapping[str, float]) -> Table:
    """Return how long each task took, and all of them together."""
    rows = [Row(cells=(Cell(text=task), Cell(text=phrases.duration(spent)))) for task, spent in seconds.items()]
    total = Row(cells=(Cell(text="together"), Cell(text=phrases.duration(sum(seconds.values())))))
    return Table(columns=("task", "time"), rows=(*rows, total))


def markdown(table: Table) -> list[str]:
    """Return the table as lines of Markdown, whatever its entries hold."""

    def line(texts: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(text.replace("|", "\\|").split()) for text in texts) + " |"

    def text(cell: Cell) -> str:
        return f"{cell.short or cell.text} **{cell.mark}**" if cell.mark else cell.short or cell.text

    entries = ([text(cell) for cell in row.cells] for row in table.rows)
    return [line(table.columns), "|" + "---|" * len(table.columns), *map(line, entries)]


def _measured(suite: SuiteSummary, metrics: Iterable[Metric]) -> list[Metric]:
    return [metric for metric in metrics if any(metric in scores.metrics for scores in suite.models.values())]


def _scores(suite: SuiteSummary, model: str, metrics: Sequence[Metric]) -> list[Cell]:
    found = suite.models[model].metrics if model in suite.models else {}
    return [_estimate(found.get(metric), metric) for metric in metrics]


def _estimate(
    estimate: Estimate | None, metric: Metric | None = None, *, bar: Mapping[str, float] | None = None
) -> Cell:
    if estimate is None:
        return Cell()
    digits = phrases.DIGITS.get(metric, 3) if metric else 3
    return Cell(
        text=phrases.figure(estimate, digits),
        detail=phrases.interval(estimate, digits),
        short=phrases.half_width(estimate, digits),
        bar=bar,
    )


def _comparison(comparison: Comparison, *, flips: bool) -> tuple[Cell, ...]:
    difference = comparison.difference
    bar = _bars({comparison.baseline: difference}, 0.0).get(comparison.baseline)
    digits = phrases.DIGITS.get(comparison.metric, 3)
    lost_and_won = (_estimate(comparison.flips_lost), _estimate(comparison.flips_won)) if flips else ()
    return (
        _model(comparison.baseline),
        Cell(text=phrases.signed(difference, digits), detail=phrases.interval(difference, digits), bar=bar),
        Cell(text=phrases.p_value(comparison.p_value)),
        Cell(text=phrases.p_value(comparison.p_adjusted)),
        *lost_and_won,
    )


def _model(model: str, *, described: bool = False) -> Cell:
    return Cell(
        text=phrases.MODEL_TITLES.get(model, model),
        detail=phrases.MODEL_MEANINGS.get(model, "") if described else "",
        model=model,
    )


def _suite(suite: SuiteSummary) -> Cell:
    items = f"{suite.num_items:,} items"
    if suite.num_groups != suite.num_items:
        items += f" from {suite.num_groups:,} sources"
    return Cell(text=suite.name, detail=f"{phrases.KIND_TITLES[suite.kind]} · {METRICS[suite.metric].title} · {items}")


def _outcome(outcome: str) -> Cell:
    return Cell(text=f"{phrases.OUTCOME_SIGNS[outcome]} {phrases.OUTCOME_TITLES[outcome]}", tone=outcome)


def _rule_bar(rule: RuleOutcome) -> Mapping[str, float] | None:
    if rule.value is None or rule.bound is None:
        return None
    return _bars({rule.rule: rule.value}, rule.bound).get(rule.rule)


def _bars(estimates: Mapping[str, Estimate], bound: float) -> dict[str, dict[str, float]]:
    """Place figures, intervals and the bound on one line from 0 to 100 that they share; what is no number has none."""
    estimates = {name: e for name, e in estimates.items() if all(map(isfinite, (e.low, e.value, e.high)))}
    if not estimates:
        return {}
    left = min(bound, *(e.low for e in estimates.values()))
    width = max(bound, *(e.high for e in estimates.values())) - left or 1.0

    def place(value: float) -> float:
        return round(NARROW + (WIDE - NARROW) * (value - left) / width, 1)

    return {
        name: {"low": place(e.low), "value": place(e.value), "high": place(e.high), "bound": place(bound)}
        for name, e in estimates.items()
    }
