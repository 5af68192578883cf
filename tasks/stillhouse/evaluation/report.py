"""The report of a run as one self-contained HTML page: verdict first, then why, then everything behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Protocol

import pyarrow as pa
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from stillhouse.contract import (
    Chain,
    Decision,
    EvaluationSummary,
    SuiteSummary,
    SynthesisReport,
    TermsReport,
    Timings,
    TraceAudit,
    TrainingHistory,
)
from stillhouse.evaluation import phrases, tables, written
from stillhouse.evaluation.chain import chain_table
from stillhouse.evaluation.plots import (
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
from stillhouse.evaluation.slices import MAX_SLICES, slices_table
from stillhouse.evaluation.tables import TaskCost
from stillhouse.evaluation.tiles import tiles
from stillhouse.evaluation.waterfall import waterfall
from stillhouse.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """One table as the run used it."""

    name: str
    """``train``, ``validation``, ``test``, ``ood-NAME`` …"""
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
    def requirement(self) -> str:
        """What was asked for, in words."""

    @property
    def severity(self) -> str:
        """``critical`` or ``warning``."""

    @property
    def success(self) -> bool:
        """Whether it was met."""

    @property
    def message(self) -> str:
        """What is wrong, in one line, if it was not met."""


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything on the page. The page depends on nothing else, so equal inputs give equal pages."""

    recipe: Recipe
    decision: Decision
    """With the integrity checks that it rests on."""
    summary: EvaluationSummary
    timings: Timings
    records: pa.Table
    """One row per model and item, of any task."""
    histories: Mapping[str, TrainingHistory]
    """By arm, in the order of the plots' legends."""
    tables: Sequence[TableFacts] = ()
    checks: Sequence[Check] = ()
    """Of the data, those that were met among them."""
    terms: TermsReport | None = None
    """Under which terms the teachers may be learned from."""
    synthesis: SynthesisReport | None = None
    """What the teacher wrote; None where the student learned from collected data."""
    chain: Chain = field(default_factory=Chain)
    """Of compression; without steps where the recipe has none."""
    preflight: str = ""
    """What became of the prediction that was made before the run; empty if there was none."""
    data_docs: str | None = None
    """Relative address of the data's own pages."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every artifact behind the page, by what it is."""
    costs: Mapping[str, TaskCost] = field(default_factory=dict)
    """By task id."""
    software: str = ""
    """Name and version of what made the page."""


def render_report(inputs: ReportInputs) -> str:
    """Return the page. It loads nothing from elsewhere, and equal inputs give equal bytes."""
    summary, decision = inputs.summary, inputs.decision
    home = summary.suites[0]
    plots = _plots(inputs)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            inputs=inputs,
            recipe=inputs.recipe,
            recipe_yaml=recipe_yaml(inputs.recipe),
            decision=decision,
            summary=summary,
            timings=inputs.timings,
            timed_on=phrases.timed_on(inputs.timings),
            home=home,
            headline=phrases.headline(decision),
            worst=phrases.worst_sentence(summary),
            tiles=tiles(summary, inputs.timings),
            rules=tables.rules_table(decision),
            integrity=tables.integrity_table(decision),
            models=tables.models_table(summary, inputs.timings),
            suites=tables.suites_table(summary),
            comparisons={suite.name: tables.comparisons_table(summary, suite.name) for suite in summary.suites},
            drops=tables.drops_table(summary),
            scope=[(suite, tables.metrics_table(summary, suite)) for suite in _out_of_scope(summary)],
            calibration=tables.metrics_table(summary, home, tables.CALIBRATION) if plots["reliability"] else None,
            fidelity=tables.metrics_table(summary, home, tables.FIDELITY),
            labels=tables.labels_table(summary, home),
            slices=[(suite, table) for suite, table in _slices(summary) if table.rows],
            held_out=tables.held_out_table(inputs.histories, perplexity=_reads_words(inputs.recipe)),
            chain=chain_table(inputs.chain, summary, inputs.timings) if inputs.chain.steps else None,
            written=_written(inputs.synthesis) if inputs.synthesis else None,
            reasoning=_reasoning(inputs.synthesis.audit) if inputs.synthesis and inputs.synthesis.audit else None,
            terms=written.terms_table(inputs.terms) if inputs.terms else None,
            costs=tables.costs_table(inputs.costs),
            figures=[(suite, tables.metrics_table(summary, suite, all_of_it=True)) for suite in summary.suites],
            plots=plots,
            data_tables=sorted(inputs.tables, key=lambda table: _place(table.name)),
            failed_checks=[check for check in inputs.checks if not check.success],
        )
    )


def environment() -> Environment:
    """Return what fills the templates of the room: only HTML is escaped, and what is missing is an error."""
    made = Environment(
        loader=PackageLoader("stillhouse.evaluation"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"interval": phrases.interval, "figure": phrases.figure, "size": phrases.size}
    made.globals |= {"phrases": phrases, "MAX_LABELS": tables.MAX_LABELS, "MAX_SLICES": MAX_SLICES}
    return made


def recipe_yaml(recipe: Recipe) -> str:
    """Write the whole recipe, defaults too. Folders are left out: where a file lies changes nothing."""
    return yaml.safe_dump(_without_folders(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _plots(inputs: ReportInputs) -> dict[str, Any]:
    """Draw what the evidence has: SVG by name, and the loss curves by term."""
    summary, timings = inputs.summary, inputs.timings
    plots: dict[str, Any] = {
        "losses": {term: to_svg(figure, name=f"loss-{term}") for term, figure in loss_curves(inputs.histories).items()}
        if inputs.histories
        else {},
        "held_out": {name: to_svg(figure, name=f"held-out-{name}") for name, figure in _held_out(inputs).items()},
        "latency": to_svg(quality_against(summary, timings, "latency"), name="latency"),
        "size": to_svg(quality_against(summary, timings, "size"), name="size"),
        "waterfall": to_svg(waterfall(inputs.chain, summary, timings), name="waterfall") if inputs.chain.steps else "",
        "reliability": "",
        "drops": to_svg(drops_away(summary), name="drops") if summary.drops.get(summary.candidate) else "",
    }
    if "probabilities" in inputs.records.column_names:
        bins = inputs.recipe.evaluation.calibration_bins
        plots["reliability"] = to_svg(reliability(inputs.records, summary, num_bins=bins), name="reliability")
    return plots


def _held_out(inputs: ReportInputs) -> dict[str, Figure]:
    return held_out_curves(inputs.histories, perplexity=_reads_words(inputs.recipe))


def _reads_words(recipe: Recipe) -> bool:
    return recipe.task != "text-classification"


def _written(report: SynthesisReport) -> dict[str, Any]:
    return {
        "counts": written.counts_table(report),
        "funnel": written.funnel_table(report),
        "sets": written.sets_table(report),
        "rating": written.rating_sentence(report),
        "plot": to_svg(funnel(report), name="funnel") if report.filters else "",
    }


def _reasoning(audit: TraceAudit) -> dict[str, Any]:
    return {
        "sentence": written.audit_sentence(audit),
        "figures": written.audit_table(audit),
        "lengths": written.lengths_table(audit),
        "compound": to_svg(compound_errors(audit), name="compound") if audit.by_length else "",
        "first_wrong": to_svg(first_wrong_steps(audit), name="first-wrong") if any(audit.first_wrong) else "",
    }


def _out_of_scope(summary: EvaluationSummary) -> list[SuiteSummary]:
    return [suite for suite in summary.suites if suite.kind == "out-of-scope"]


def _slices(summary: EvaluationSummary) -> list[tuple[SuiteSummary, tables.Table]]:
    """Return the worst slices of every suite; a perturbed one has those of the in-domain suite, which say enough."""
    return [(suite, slices_table(summary, suite)) for suite in summary.suites if suite.kind != "perturbed"]


def _place(table: str) -> tuple[int, str]:
    """Put the tables of the domain in the order of their use, others by name."""
    order = ("train", "validation", "test")
    return (order.index(table) if table in order else len(order)), table


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
