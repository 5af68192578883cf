"""The end of a run in the terminal: verdict, models, suites, rules. What the tables say is in `tables`."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stillhouse.contract import Chain, Decision, EvaluationSummary, RuleOutcome, SynthesisReport, Timings
from stillhouse.evaluation import phrases, tables, written
from stillhouse.evaluation.chain import chain_table
from stillhouse.evaluation.slices import slices_table

VERDICT_STYLES = {"promote": "bold green", "reject": "bold red", "inconclusive": "bold yellow"}
OUTCOME_STYLES = {"pass": "green", "fail": "red", "inconclusive": "yellow", "warn": "yellow"}


def render_text(
    summary: EvaluationSummary,
    timings: Timings,
    decision: Decision,
    synthesis: SynthesisReport | None = None,
    chain: Chain | None = None,
) -> RenderableType:
    """Return what `rich` prints at the end of a run, in whatever width there is: long entries break, none is cut."""
    home = summary.suites[0].name
    level = f"intervals at {100 * summary.confidence:g} %"
    parts: list[RenderableType] = [
        _verdict(summary, decision),
        _drawn(tables.models_table(summary, timings), f"Models on {home}, {level}"),
    ]
    if len(summary.suites) > 1:
        parts.append(_drawn(tables.suites_table(summary), "Suites"))
    slices = slices_table(summary, summary.suites[0])
    if slices.rows:
        parts.append(_drawn(slices, f"Worst slices of {home}"))
    scope = [suite for suite in summary.suites if suite.kind == "out-of-scope"]
    parts += [_drawn(tables.metrics_table(summary, suite), f"Out of scope: {suite.name}") for suite in scope]
    if chain and chain.steps:
        parts.append(_drawn(chain_table(chain, summary, timings, described=False), "Compression"))
        parts += [Text(f"• {step.name}, from {step.before}: {step.did}; {step.reason}") for step in chain.steps]
    if synthesis:
        parts.append(_drawn(written.funnel_table(synthesis), "What the teacher wrote"))
        parts += [Text(f"• {sentence}") for sentence in written.written_sentences(synthesis)]
    parts.append(rules_table(decision))
    parts += [
        Text(f"{phrases.OUTCOME_SIGNS[check.outcome]} {check.name}: {check.detail}", OUTCOME_STYLES[check.outcome])
        for check in decision.checks
    ]
    return Group(*parts, *(Text(f"• {note}", style="yellow") for note in decision.notes))


def rules_table(decision: Decision) -> Table:
    """Return every rule with what was found and how it came out, and why where it does not pass."""
    with_power = any(rule.power is not None for rule in decision.rules)
    table = _empty(f"Policy {decision.policy}", "requirement")
    for column in ("found", "items", *(["power"] if with_power else [])):
        table.add_column(column, justify="right")
    table.add_column("outcome", no_wrap=True)
    for rule in decision.rules:
        power = ["" if rule.power is None else f"{100 * rule.power:.0f} %"] if with_power else []
        items = f"{rule.value.n:,}" if rule.value else ""
        outcome = Text(f"{phrases.OUTCOME_SIGNS[rule.outcome]} {rule.outcome}", style=OUTCOME_STYLES[rule.outcome])
        table.add_row(_requirement(rule), _found(rule), items, *power, outcome)
    return table


def _verdict(summary: EvaluationSummary, decision: Decision) -> Panel:
    style = VERDICT_STYLES[decision.verdict]
    text = Text.assemble((decision.verdict.upper(), style), "  ", phrases.headline(decision))
    if worst := phrases.worst_sentence(summary):
        text.append(f"\n{worst}", style="dim")
    return Panel(text, border_style=style.removeprefix("bold "))


def _drawn(content: tables.Table, title: str) -> Table:
    """Draw a table; a figure stands beside its interval."""
    first, *others = content.columns
    table = _empty(title, first)
    for column in others:
        table.add_column(column, justify="right", overflow="fold")
    for row in content.rows:
        name, *entries = row.cells
        texts = [f"{cell.short or cell.text}{' ' + cell.mark if cell.mark else ''}" for cell in entries]
        table.add_row(name.text, *texts, style="bold" if row.marked else None)
    return table


def _empty(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", padding=(0, 1))
    table.add_column(first, overflow="fold")
    return table


def _requirement(rule: RuleOutcome) -> Text:
    text = Text(rule.requirement)
    if rule.outcome != "pass" and rule.value:
        text.append(f"\n{rule.reason}", style="dim")
    return text


def _found(rule: RuleOutcome) -> str:
    return f"{phrases.figure(rule.value)} {phrases.interval(rule.value)}" if rule.value else rule.reason
