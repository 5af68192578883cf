"""What the tables of a report say, whatever they are drawn with: the page, Markdown or the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite

from stillhouse.contract import (
    METRICS,
    MODELS,
    Comparison,
    Decision,
    Estimate,
    EvaluationSummary,
    Metric,
    ModelTiming,
    RuleOutcome,
    SuiteSummary,
    Timings,
    TrainingHistory,
    ValidationPoint,
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
class TaskCost:
    """What one task took when its result was made."""

    seconds: float
    """Wall time."""
    cpu_seconds: float = 0.0
    """Of all its threads."""
    device_seconds: float = 0.0
    """Time during which it held accelerators."""
    peak_memory_bytes: int = 0
    """Largest resident size of its process."""
    cost: float | None = None
    """In the currency of the deployment; None where nothing has a price."""


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
            estimate_cell(rule.value, bar=_rule_bar(rule)),
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
    kept_title = [phrases.kept_title(summary, home.name)] if summary.has_teacher else []
    rows = []
    for model in summary.models:
        timing = timings.models.get(model)
        cells = (
            model_cell(model, phrases.meaning(model, summary)),
            *_scores(home, model, shown),
            *(Cell(text=phrases.kept_by(summary, home.name, model)) for _ in kept_title),
            _size(timing) if timing else Cell(),
            Cell(text=f"{timing.latency_p50_ms:.1f} / {timing.latency_p95_ms:.1f} ms") if timing else Cell(),
            Cell(text=f"{timing.throughput:,.0f}") if timing else Cell(),
        )
        rows.append(Row(cells=cells, marked=model == summary.candidate))
    titles = (phrases.metric_title(metric) for metric in shown)
    return Table(columns=("model", *titles, *kept_title, "size", "latency p50 / p95", "texts/s"), rows=tuple(rows))


def _size(timing: ModelTiming) -> Cell:
    detail = f"{timing.parameters / 1e6:,.1f} M parameters"
    if timing.peak_memory_bytes:
        detail += f", {phrases.size(timing.peak_memory_bytes)} of memory"
    return Cell(text=phrases.size(timing.num_bytes), detail=detail)


def suites_table(summary: EvaluationSummary) -> Table:
    """Return the models on every suite but the out-of-scope ones, what is kept there, and which suite is worst.

    Of the steps of a compression chain only the candidate is among them.
    """
    suites = [suite for suite in summary.suites if suite.kind != "out-of-scope"]
    bars = _bars(summary.retention, 1.0) or _bars(phrases.gaps(summary), 0.0)
    worst = phrases.worst_kept(summary) or phrases.worst_gap(summary)
    shown = [model for model in summary.models if model in MODELS or model == summary.candidate]
    rows = []
    for suite in suites:
        kept = Cell(
            text=phrases.kept_by(summary, suite.name, summary.candidate),
            bar=bars.get(suite.name),
            mark="worst" if worst and worst[0] == suite.name and len(suites) > 1 else "",
        )
        models = (estimate_cell(suite.score(model), suite.metric) for model in shown)
        rows.append(Row(cells=(_suite(suite), *models, *([kept] if summary.has_teacher else []))))
    if summary.mean_retention is not None and len(summary.retention) > 1:
        blanks = [Cell(text="")] * len(shown)
        mean = Cell(text=phrases.half_width_percent(summary.mean_retention))
        rows.append(Row(cells=(Cell(text="mean of the shares", detail="every suite counts alike"), *blanks, mean)))
    kept_title = f"{summary.candidate} keeps" if summary.retention else f"{summary.candidate} minus teacher"
    last = [kept_title] if summary.has_teacher else []
    return Table(columns=("suite", *shown, *last), rows=tuple(rows))


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
        drop = [estimate_cell(summary.drops.get(model, {}).get(suite.name), suite.metric)] if with_drop else []
        cut = [Cell(text=f"{scores.truncated:,}")] if all_of_it else []
        cells = (model_cell(model), *_scores(suite, model, shown), *drop, *cut)
        rows.append(Row(cells=cells, marked=model == summary.candidate))
    titles = (phrases.metric_title(metric) for metric in shown)
    drop_title = [f"drop from {summary.suites[0].name}"] if with_drop else []
    return Table(columns=("model", *titles, *drop_title, *(["cut"] if all_of_it else [])), rows=tuple(rows))


def drops_table(summary: EvaluationSummary) -> Table:
    """Return what the candidate loses on each suite away from home, and what of it the teacher does not lose."""
    own, excess = summary.drops.get(summary.candidate, {}), summary.excess_drops
    judged = excess or own
    worst = max(judged, key=lambda name: (judged[name].value, name), default=None)
    bars = _bars(judged, 0.0)
    rows = []
    for suite in (suite for suite in summary.suites if suite.name in judged):
        last = estimate_cell(judged[suite.name], suite.metric, bar=bars.get(suite.name))
        last = replace(last, mark="worst" if suite.name == worst and len(judged) > 1 else "")
        before = (summary.drops.get(model, {}).get(suite.name) for model in ("teacher", summary.candidate))
        drops = [estimate_cell(drop, suite.metric) for drop in before] if excess else []
        rows.append(Row(cells=(_suite(suite), *drops, last)))
    mine = f"{summary.candidate}'s drop"
    titles = ("teacher's drop", mine, "beyond the teacher's") if excess else (mine,)
    return Table(columns=("suite", *titles), rows=tuple(rows))


def labels_table(summary: EvaluationSummary, suite: SuiteSummary) -> Table:
    """Return the recall of the labels that the candidate misses most, the worst first."""
    mine = suite.models[summary.candidate].per_label if summary.candidate in suite.models else {}
    teacher = suite.models["teacher"].per_label if "teacher" in suite.models else None
    worst = sorted(mine, key=lambda label: (mine[label].value, label))[:MAX_LABELS]
    rows = (
        Row(
            cells=(
                Cell(text=label),
                estimate_cell(mine[label]),
                *([] if teacher is None else [estimate_cell(teacher.get(label))]),
                Cell(text=f"{mine[label].n:,}"),
            )
        )
        for label in worst
    )
    beside = [] if teacher is None else ["teacher's recall"]
    return Table(columns=("label", f"{summary.candidate}'s recall", *beside, "items"), rows=tuple(rows))


def costs_table(costs: Mapping[str, TaskCost]) -> Table:
    """Return what each task took, and all of them together; accelerators and money only where there are any."""
    found = list(costs.values())
    with_devices = any(cost.device_seconds for cost in found)
    with_money = any(cost.cost is not None for cost in found)

    def row(name: str, some: Sequence[TaskCost]) -> Row:
        paid = [cost.cost for cost in some if cost.cost is not None]
        cells = [
            Cell(text=name),
            Cell(text=phrases.duration(sum(cost.seconds for cost in some))),
            Cell(text=phrases.duration(sum(cost.cpu_seconds for cost in some))),
            *([Cell(text=phrases.duration(sum(cost.device_seconds for cost in some)))] if with_devices else []),
            Cell(text=phrases.size(max((cost.peak_memory_bytes for cost in some), default=0))),
            *([Cell(text=phrases.money(sum(paid)) if paid else NOTHING)] if with_money else []),
        ]
        return Row(cells=tuple(cells))

    rows = [row(task, [cost]) for task, cost in costs.items()]
    devices, money = (["accelerator time"] if with_devices else []), (["paid"] if with_money else [])
    return Table(
        columns=("task", "time", "CPU time", *devices, "peak memory", *money), rows=(*rows, row("together", found))
    )


def held_out_table(histories: Mapping[str, TrainingHistory], *, perplexity: bool) -> Table:
    """Return the loss on the validation set before and after the training of each arm that measured it."""

    def loss(point: ValidationPoint) -> Cell:
        return Cell(text=f"{point.loss:.3f}", detail=f"perplexity {exp(point.loss):,.1f}" if perplexity else "")

    rows = []
    for arm, history in histories.items():
        if not history.validation:
            continue
        first, last = history.validation[0], history.validation[-1]
        best = min(history.validation, key=lambda point: point.loss)
        cells = (
            model_cell(arm),
            Cell(text=f"{last.tokens:,}"),
            loss(first),
            loss(last),
            Cell(text=f"{best.loss:.3f}", detail=f"at {best.tokens:,} tokens"),
        )
        rows.append(Row(cells=cells))
    return Table(columns=("model", "tokens seen", "loss at first", "loss at last", "best loss"), rows=tuple(rows))


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
    return [estimate_cell(found.get(metric), metric) for metric in metrics]


def estimate_cell(
    estimate: Estimate | None, metric: Metric | None = None, *, bar: Mapping[str, float] | None = None
) -> Cell:
    """Return the entry of a figure with its interval; an empty one where nothing was measured."""
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
    lost_and_won = (estimate_cell(comparison.flips_lost), estimate_cell(comparison.flips_won)) if flips else ()
    return (
        model_cell(comparison.baseline),
        Cell(text=phrases.signed(difference, digits), detail=phrases.interval(difference, digits), bar=bar),
        Cell(text=phrases.p_value(comparison.p_value)),
        Cell(text=phrases.p_value(comparison.p_adjusted)),
        *lost_and_won,
    )


def model_cell(model: str, detail: str = "") -> Cell:
    """Return the entry that names a model."""
    return Cell(text=phrases.MODEL_TITLES.get(model, model), detail=detail, model=model)


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
