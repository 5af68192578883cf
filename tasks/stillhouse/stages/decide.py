"""Stage ``decide``: the gate's verdict, and the report that a reviewer reads.

Outputs: ``decision`` (JSON), ``report`` (HTML), ``card`` (Markdown, for the reviewer), ``model-card`` (Markdown, goes
with the weights).
"""

import posixpath
from collections.abc import Mapping
from pathlib import Path

from stillhouse import __version__
from stillhouse.contract import (
    Artifact,
    Decision,
    EvaluationSummary,
    Preflight,
    Timings,
    TrainingHistory,
    compare,
    pretty_json,
)
from stillhouse.data.report import ValidationReport
from stillhouse.evaluation import ReportInputs, TableFacts, read_records, render_card, render_model_card, render_report
from stillhouse.promotion.gate import decide
from stillhouse.promotion.policy import load_policy
from stillhouse.recipe import Recipe
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.records import read_records as read_task_records
from stillhouse.stages.records import read_result


def run(context: StageContext) -> StageOutcome:
    """Judge the candidate by the policy.

    Raises:
        RecipeError: The policy file is missing or wrong.
    """
    inputs = context.request.inputs
    summary = EvaluationSummary.model_validate_json(context.input("summary").read_bytes())
    timings = Timings.model_validate_json(context.input("timings").read_bytes())
    validation = ValidationReport.model_validate_json(context.input("validation").read_bytes())
    decision = decide(
        load_policy(Path(context.recipe.gate.policy)),
        summary,
        timings=timings,
        checks=validation.integrity,
        timings_sha256=inputs["timings"].sha256,
        model_sha256=inputs["model"].sha256,
        champion_sha256=context.request.parameters.get("champion_sha256"),
        evidence_sha256=inputs["summary"].sha256,
    )
    context.save_bytes("decision", pretty_json(decision), ".json")
    context.save_bytes("card", render_card(decision, summary).encode(), ".md")
    shown = ReportInputs(
        recipe=context.recipe,
        decision=decision,
        summary=summary,
        timings=timings,
        records=read_records(context.input("records")),
        histories={
            name.removeprefix("history-"): TrainingHistory.model_validate_json(path.read_bytes())
            for name, path in context.inputs("history-.+")
        },
        tables=_table_facts(context.recipe, validation, inputs),
        checks=validation.checks,
        preflight=_preflight(context, summary),
        # As seen from the report in the same store.
        data_docs=posixpath.relpath(f"{inputs['docs'].uri}/index.html", context.store.uri(context.prefix)),
        digests={name: artifact.sha256 for name, artifact in inputs.items()},
        seconds=_seconds(context),
        software=f"Stillhouse {__version__}",
    )
    context.save_bytes("report", render_report(shown).encode(), ".html")
    context.save_bytes("model-card", render_model_card(shown).encode(), ".md")
    return StageOutcome(summary=_headline(decision), metrics=_counts(decision))


def _preflight(context: StageContext, summary: EvaluationSummary) -> str:
    """Return what became of the prediction that was made before this run; empty if there was none."""
    if "preflight" not in context.request.inputs:
        return ""
    prediction = Preflight.model_validate_json(context.input("preflight").read_bytes())
    return compare(prediction, summary).statement


def _seconds(context: StageContext) -> dict[str, float]:
    """Return how long each task of this run took when its result was made."""
    tasks = read_task_records(context.store, context.request.run_id)
    return {name: read_result(record.result).seconds for name, record in tasks.items() if record.result}


def _table_facts(recipe: Recipe, validation: ValidationReport, inputs: Mapping[str, Artifact]) -> list[TableFacts]:
    named = recipe.data.named_tables()
    return [
        TableFacts(
            name=name,
            num_rows=facts.rows,
            sha256=inputs[f"data-{name}"].sha256,
            licence=named.get(name, recipe.data.train).licence,
            origin=named.get(name, recipe.data.train).origin,
        )
        for name, facts in validation.tables.items()
        if f"data-{name}" in inputs
    ]


def _headline(decision: Decision) -> str:
    rules = len(decision.rules)
    passed = sum(rule.outcome == "pass" for rule in decision.rules)
    first = next((rule for rule in decision.rules if rule.outcome != "pass"), None)
    return f"{decision.verdict}: {passed} of {rules} rules pass" + (f"; {first.rule}: {first.reason}" if first else "")


def _counts(decision: Decision) -> dict[str, float]:
    return {
        f"rules.{outcome}": float(sum(rule.outcome == outcome for rule in decision.rules))
        for outcome in ("pass", "fail", "inconclusive")
    }
