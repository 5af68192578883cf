"""The end of a run in the terminal: verdict, models, rules."""

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stillhouse.contract import Decision, EvaluationSummary, Timings
from stillhouse.evaluation import phrases

NO_BREAK = "\u00a0"
"""Keeps a figure and its interval on one line."""
VERDICT_STYLES = {"promote": "bold green", "reject": "bold red", "inconclusive": "bold yellow"}
OUTCOMES = {
    "pass": Text("✓ pass", style="green"),
    "fail": Text("✗ fail", style="red"),
    "inconclusive": Text("? inconclusive", style="yellow"),
}


def render_text(summary: EvaluationSummary, timings: Timings, decision: Decision) -> RenderableType:
    """Return what `rich` prints at the end of a run."""
    notes = [Text(f"• {note}", style="yellow") for note in decision.notes]
    return Group(_verdict(decision), models_table(summary, timings), rules_table(decision), *notes)


def models_table(summary: EvaluationSummary, timings: Timings) -> Table:
    """Return quality per suite with intervals, retention, size and latency of every model."""
    home = summary.suites[0].name
    table = Table(title=f"Accuracy, intervals at {100 * summary.confidence:g} %", title_justify="left")
    table.add_column("model")
    for suite in summary.suites:
        table.add_column(suite.name, justify="right", no_wrap=True)
    for column in ("kept", "size", "latency"):
        table.add_column(column, justify="right", no_wrap=True)
    for model in summary.models:
        scores = [phrases.scores_of(summary, suite.name, model) for suite in summary.suites]
        timing = timings.models.get(model)
        table.add_row(
            phrases.MODEL_TITLES.get(model, model),
            *(phrases.half_width(score.accuracy) if score else "—" for score in scores),
            phrases.kept_by(summary, home, model),
            phrases.size(timing.num_bytes) if timing else "—",
            f"{timing.latency_p50_ms:.1f} ms" if timing else "—",
            style="bold" if model == summary.candidate else None,
        )
    return table


def rules_table(decision: Decision) -> Table:
    """Return every rule with what was found and how it came out."""
    table = Table(title=f"Policy {decision.policy}", title_justify="left")
    table.add_column("requirement")
    table.add_column("found", justify="right")
    table.add_column("outcome", no_wrap=True)
    for rule in decision.rules:
        figure = f"{phrases.figure(rule.value)} {phrases.interval(rule.value)}" if rule.value else ""
        found = figure.replace(" ", NO_BREAK) or rule.reason
        requirement = Text(rule.requirement)
        if rule.outcome != "pass" and rule.value:
            requirement.append(f"\n{rule.reason}", style="dim")
        table.add_row(requirement, Text(found), OUTCOMES[rule.outcome])
    return table


def _verdict(decision: Decision) -> Panel:
    style = VERDICT_STYLES[decision.verdict]
    text = Text.assemble((decision.verdict.upper(), style), "  ", phrases.headline(decision))
    return Panel(text, border_style=style.removeprefix("bold "))
