"""Stage ``promote``: the approved student becomes the champion of its registered model.

Outputs: ``promotion`` (JSON). Runs every time and finds for itself what is done already.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from stillhouse.contract import ConfigurationError, Decision, NotPermitted, pretty_json
from stillhouse.promotion.ledger import Approval, Ledger
from stillhouse.promotion.promote import PromotionRequest, promote_model
from stillhouse.promotion.registry import Registry
from stillhouse.stages.context import StageContext, StageOutcome


def run(context: StageContext) -> StageOutcome:
    """Register the student, load it back, write the ledger, move the aliases.

    Raises:
        NotPermitted: The verdict is not to promote, or the approval is missing or for another decision.
        Conflict: Another model became champion since the decision.
        ConfigurationError: There is no MLflow server.
    """
    recipe, request = context.recipe, context.request
    if request.tracking_uri is None or context.mlflow_run_id is None:
        raise ConfigurationError("promotion needs an MLflow server: set MLFLOW_TRACKING_URI")
    decision = Decision.model_validate_json(context.input("decision").read_bytes())
    promotion = promote_model(
        PromotionRequest(
            model=recipe.promotion.model,
            artifact=request.inputs["model"],
            folder=context.input("model"),
            decision=decision,
            approval=_approval(request.parameters.get("approval"), recipe.promotion.approval, decision),
            run_id=request.run_id,
            mlflow_run_id=context.mlflow_run_id,
            tags={
                "stillhouse.recipe": recipe.name,
                "stillhouse.run_id": request.run_id,
                "stillhouse.decision_sha256": decision.digest,
                "stillhouse.policy": f"{decision.policy} {decision.policy_sha256}",
                "stillhouse.evidence_sha256": decision.evidence_sha256,
                "stillhouse.teacher_licence": recipe.teacher.licence,
                "stillhouse.data_licence": recipe.data.train.licence,
            },
        ),
        ledger=Ledger(context.store, recipe.promotion.model),
        registry=Registry(request.tracking_uri),
    )
    context.save_bytes("promotion", pretty_json(promotion), ".json")
    done = "already is" if promotion.already_champion else "is now"
    return StageOutcome(
        summary=f"models:/{promotion.model}@champion {done} version {promotion.version}",
        metrics={"version": float(promotion.version), "ledger_sequence": float(promotion.ledger_sequence)},
    )


def _approval(answer: Mapping[str, Any] | None, mode: str, decision: Decision) -> Approval:
    """Return the answer that was given for this decision; without Airflow, whoever runs an ``auto`` recipe gives it."""
    if answer is None:
        if mode == "human":
            raise NotPermitted("this recipe asks a person to approve; run it through Airflow")
        answer = {"approved": True, "by": "recipe", "at": datetime.now(UTC), "decision_sha256": decision.digest}
    if not answer.get("approved"):
        raise NotPermitted("the reviewer rejected this decision; nothing was moved")
    return Approval(
        mode="human" if mode == "human" else "auto",
        who=answer["by"],
        when=answer["at"],
        decision_sha256=answer["decision_sha256"],
    )
