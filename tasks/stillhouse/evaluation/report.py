"""The report of a run as one self-contained HTML page, and the card on which a reviewer decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Protocol

import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from stillhouse.contract import Decision, EvaluationSummary, RuleOutcome, Timings, TrainingHistory
from stillhouse.evaluation import phrases
from stillhouse.evaluation.plots import loss_curves, quality_against_latency, reliability, to_svg
from stillhouse.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """One table as the run used it."""

    name: str
    """``train``, ``validation``, ``test`` or ``ood-NAME``."""
    num_rows: int
    sha256: str
    """Of the frozen table."""
    licence: str
    origin: str


class Check(Protocol):
    """One check of the data, such as those of `stillhouse.data.ValidationReport`."""

    @property
    def table(self) -> str:
        """What was checked."""

    @property
    def expectation(self) -> str:
        """What was expected of it."""

    @property
    def severity(self) -> str:
        """``critical`` or ``warning``."""

    @property
    def success(self) -> bool:
        """Whether it was met."""


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything on the page. The page depends on nothing else, so equal inputs give equal pages."""

    recipe: Recipe
    decision: Decision
    summary: EvaluationSummary
    timings: Timings
    records: pa.Table
    histories: Mapping[str, TrainingHistory]
    """By arm, in the order of the plots' legends."""
    tables: Sequence[TableFacts] = ()
    checks: Sequence[Check] = ()
    data_docs: str | None = None
    """Relative address of the data's own pages."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every artifact behind the page, by what it is."""
    software: str = ""
    """Name and version of what made the page."""


def render_report(inputs: ReportInputs) -> str:
    """Return the page: verdict first, then rules, models, curves, data, lineage. It loads nothing from elsewhere."""
    summary = inputs.summary
    plots = {
        "losses": to_svg(loss_curves(inputs.histories), name="losses") if inputs.histories else "",
        "reliability": to_svg(
            reliability(inputs.records, summary, num_bins=inputs.recipe.evaluation.calibration_bins),
            name="reliability",
        ),
        "latency": to_svg(quality_against_latency(summary, inputs.timings), name="latency"),
    }
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            inputs=inputs,
            recipe=inputs.recipe,
            recipe_yaml=_recipe_yaml(inputs.recipe),
            decision=inputs.decision,
            summary=summary,
            timings=inputs.timings,
            headline=phrases.headline(inputs.decision),
            plots=plots,
            tables=sorted(inputs.tables, key=lambda table: _place(table.name)),
            failed_checks=[check for check in inputs.checks if not check.success],
        )
    )


def render_card(decision: Decision, summary: EvaluationSummary) -> str:
    """Return the decision as Markdown for an approval form: verdict, rules, notes, and the digest it is bound to."""
    marks = {"pass": "✅", "fail": "❌", "inconclusive": "❔"}
    titles = {"promote": "✅ Promote", "reject": "❌ Reject", "inconclusive": "❔ Inconclusive"}
    lines = [
        f"## {titles[decision.verdict]}",
        "",
        phrases.headline(decision),
        "",
        "| | requirement | value | n | reason |",
        "|---|---|---|---|---|",
    ]
    for rule in decision.rules:
        value = f"{phrases.figure(rule.value)} {phrases.interval(rule.value)}" if rule.value else "—"
        items = f"{rule.value.n:,}" if rule.value else "—"
        lines.append(
            f"| {marks[rule.outcome]} | **{rule.rule}**: {rule.requirement} | {value} | {items} | {rule.reason} |"
        )
    lines += ["", *(f"- {note}" for note in decision.notes)]
    lines += [
        "",
        f"Intervals at {100 * summary.confidence:g} %. Candidate `{decision.candidate}`, "
        f"model `{decision.model_sha256[:16]}…`, champion "
        + (f"`{decision.champion_sha256[:16]}…`." if decision.champion_sha256 else "none yet."),
        "",
        f"Your answer is bound to decision `{decision.digest}`.",
        "",
    ]
    return "\n".join(lines)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("stillhouse.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": phrases.interval, "figure": phrases.figure, "size": phrases.size}
    environment.globals |= {
        "titles": phrases.MODEL_TITLES,
        "meanings": phrases.MODEL_MEANINGS,
        "kept_by": phrases.kept_by,
        "interval_bar": _interval_bar,
    }
    return environment


def _place(table: str) -> tuple[int, str]:
    """Put the tables of the domain in the order of their use, others by name."""
    order = ("train", "validation", "test")
    return (order.index(table) if table in order else len(order)), table


def _interval_bar(rule: RuleOutcome) -> dict[str, float] | None:
    """Place a rule's figure, interval and bound on a line from 0 to 100; None if it judged no figure."""
    if rule.value is None or rule.bound is None:
        return None
    left = min(rule.value.low, rule.bound)
    width = max(rule.value.high, rule.bound) - left or 1.0
    places = {"low": rule.value.low, "value": rule.value.value, "high": rule.value.high, "bound": rule.bound}
    return {name: round(8 + 84 * (place - left) / width, 1) for name, place in places.items()}


def _recipe_yaml(recipe: Recipe) -> str:
    """Write the whole recipe, defaults too. Folders are left out: where a file lies changes no page."""
    return yaml.safe_dump(_without_folders(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _without_folders(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_folders(item) for item in node]
    if not isinstance(node, dict):
        return node
    paths = {"policy"} | ({"path"} if node.get("kind") == "path" else set())
    return {
        key: PurePath(value).name if key in paths and isinstance(value, str) else _without_folders(value)
        for key, value in node.items()
    }
