"""Stage ``decide``: the gate's verdict, and the report that a reviewer reads.

Outputs: ``decision`` (JSON), ``card`` (Markdown), ``report`` (HTML).
"""

import json
from pathlib import Path

from stillhouse.contract import Decision, EvaluationSummary, Timings, TrainingHistory, pretty_json
from stillhouse.evaluation import ReportInputs, read_records, render_card, render_report
from stillhouse.promotion import decide, load_policy
from stillhouse.stages.context import StageContext, StageOutcome


def run(context: StageContext) -> StageOutcome:
    """Judge the candidate by the policy.

    Raises:
        RecipeError: The policy file is missing or wrong.
    """
    inputs = context.request.inputs
    summary = EvaluationSummary.model_validate_json(context.input("summary").read_bytes())
    decision = decide(
        load_policy(Path(context.recipe.gate.policy)),
        summary,
        model_sha256=inputs["model"].sha256,
        champion_sha256=context.request.parameters.get("champion_sha256"),
        evidence_sha256=inputs["summary"].sha256,
    )
    context.save_bytes("decision", pretty_json(decision), ".json")
    context.save_bytes("card", render_card(decision, summary).encode(), ".md")
    report = render_report(
        ReportInputs(
            recipe=context.recipe,
            summary=summary,
            timings=Timings.model_validate_json(context.input("timings").read_bytes()),
            decision=decision,
            records=read_records(context.input("records")),
            histories={
                name.removeprefix("history-"): TrainingHistory.model_validate_json(path.read_bytes())
                for name, path in context.inputs("history-.+")
            },
            validation=json.loads(context.input("validation").read_bytes()),
            inputs=inputs,
        )
    )
    context.save_bytes("report", report.encode(), ".html")
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
