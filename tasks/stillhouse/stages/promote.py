"""Stage ``promote``: the approved student becomes the champion of its registered model.

Outputs: ``promotion`` (JSON). Runs every time and finds for itself what is done already.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from stillhouse.contract import ConfigurationError, Decision, NotPermitted, TermsReport, pretty_json
from stillhouse.promotion.ledger import Approval, Ledger
from stillhouse.promotion.promote import PromotionRequest, promote_model
from stillhouse.promotion.registry import Registry
from stillhouse.promotion.signing import SigningKeys
from stillhouse.promotion.variants import Variant, register_variants
from stillhouse.stages.chain import model_input, read_chain
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.origin import version_tags


def run(context: StageContext) -> StageOutcome:
    """Register the student, load it back, write the ledger, move the aliases; then register its variants.

    Raises:
        NotPermitted: The verdict is not to promote, or the approval is missing or for another decision.
        Conflict: Another model became champion since the decision.
        ConfigurationError: There is no MLflow server.
    """
    recipe, request = context.recipe, context.request
    if request.tracking_uri is None or context.mlflow_run_id is None:
        raise ConfigurationError("promotion needs an MLflow server: set MLFLOW_TRACKING_URI")
    decision = Decision.model_validate_json(context.input("decision").read_bytes())
    terms = TermsReport.model_validate_json(context.input("terms").read_bytes())
    candidate, tags = model_input(decision.candidate), version_tags(context, decision, terms)
    registry = Registry(request.tracking_uri, SigningKeys.from_environment())
    promotion = promote_model(
        PromotionRequest(
            model=recipe.promotion.model,
            artifact=request.inputs[candidate],
            folder=context.input(candidate),
            decision=decision,
            approval=_approval(request.parameters.get("approval"), recipe.promotion.approval, decision),
            run_id=request.run_id,
            mlflow_run_id=context.mlflow_run_id,
            tags=tags,
            teachers=terms.teachers,
            production=recipe.promotion.production,
            card=context.input("model-card").read_text(encoding="utf-8"),
        ),
        ledger=Ledger(context.store, recipe.promotion.model),
        registry=registry,
    )
    variants = register_variants(
        registry,
        recipe.promotion.model,
        _variants(context),
        champion_sha256=promotion.model_sha256,
        tags=tags,
        mlflow_run_id=context.mlflow_run_id,
    )
    promotion = promotion.model_copy(update={"variants": variants})
    context.save_bytes("promotion", pretty_json(promotion), ".json")
    done = "already is" if promotion.already_champion else "is now"
    beside = "".join(f"; {name} is version {version}" for name, version in variants.items())
    return StageOutcome(
        summary=f"models:/{promotion.model}@champion {done} version {promotion.version}{beside}",
        metrics={"version": float(promotion.version), "ledger_sequence": float(promotion.ledger_sequence)},
    )


def _variants(context: StageContext) -> list[Variant]:
    """Return the kept models of the compression chain that no alias can point to."""
    found = []
    for step in read_chain(context.request.inputs).variants:
        name = model_input(step.name)
        found.append(Variant(step=step, artifact=context.request.inputs[name], folder=context.input(name)))
    return found


def _approval(
    answer: Mapping[str, Any] | None, mode: Literal["auto", "human", "two-person"], decision: Decision
) -> Approval:
    """Return the answer that was given for this decision; without Airflow, whoever runs an ``auto`` recipe gives it."""
    if answer is None:
        if mode != "auto":
            raise NotPermitted("this recipe asks a person to approve; run it through Airflow")
        answer = {"approved": True, "by": "recipe", "at": datetime.now(UTC), "decision_sha256": decision.digest}
    if not answer.get("approved"):
        raise NotPermitted("the reviewer rejected this decision; nothing was moved")
    if mode == "two-person" and answer.get("mode") != mode:
        raise NotPermitted("this recipe asks for two persons, and the approval was given without; clear task approve")
    return Approval(
        mode=mode,
        who=answer["by"],
        when=answer["at"],
        decision_sha256=answer["decision_sha256"],
        triggered_by=answer.get("triggered_by"),
    )
