"""Stage ``decide``: the gate's verdict, and the report that a reviewer reads.

Outputs: ``decision`` (JSON), ``report`` (HTML), ``card`` (Markdown, for the reviewer), ``model-card`` (Markdown, goes
with the weights).
"""

import posixpath
from pathlib import Path

from stillhouse import __version__
from stillhouse.contract import Decision, pretty_json
from stillhouse.evaluation import ReportInputs, read_records, render_card, render_model_card, render_report
from stillhouse.promotion.gate import decide
from stillhouse.promotion.policy import load_policy
from stillhouse.stages.chain import model_input
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.evidence import Reports
from stillhouse.stages.facts import table_facts, task_costs


def run(context: StageContext) -> StageOutcome:
    """Judge the candidate by the policy.

    Raises:
        RecipeError: The policy file is missing or wrong.
    """
    inputs = context.request.inputs
    reports = Reports.read(context)
    decision = decide(
        load_policy(Path(context.recipe.gate.policy)),
        reports.summary,
        timings=reports.timings,
        checks=reports.integrity,
        timings_sha256=inputs["timings"].sha256,
        model_sha256=inputs[model_input(reports.summary.candidate)].sha256,
        champion_sha256=context.request.parameters.get("champion_sha256"),
        evidence_sha256=inputs["summary"].sha256,
        has_teacher=context.recipe.teacher.source is not None,
    )
    context.save_bytes("decision", pretty_json(decision), ".json")
    context.save_bytes("card", render_card(decision, reports.summary).encode(), ".md")
    shown = ReportInputs(
        recipe=context.recipe,
        decision=decision,
        summary=reports.summary,
        timings=reports.timings,
        records=read_records(context.input("records")),
        histories=reports.histories,
        tables=table_facts(context, reports),
        checks=reports.checks,
        terms=reports.terms,
        synthesis=reports.synthesis,
        preflight=reports.foretold,
        chain=reports.chain,
        # As seen from the report in the same store.
        data_docs=posixpath.relpath(f"{inputs['docs'].uri}/index.html", context.store.uri(context.prefix)),
        digests={name: artifact.sha256 for name, artifact in inputs.items()},
        costs=task_costs(context),
        software=f"Stillhouse {__version__}",
    )
    context.save_bytes("report", render_report(shown).encode(), ".html")
    context.save_bytes("model-card", render_model_card(shown).encode(), ".md")
    return StageOutcome(summary=_headline(decision), metrics=_counts(decision))


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
