"""Stage ``promote``: the approved student becomes the champion of its registered model.

Outputs: ``promotion`` (JSON). Runs every time and finds for itself what is done already.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from stillhouse import __version__
from stillhouse.contract import (
    ConfigurationError,
    Decision,
    NotPermitted,
    TermsReport,
    canonical_json,
    code_version,
    pretty_json,
)
from stillhouse.contract.keys import PACKAGE_ROOT
from stillhouse.promotion.ledger import Approval, Ledger
from stillhouse.promotion.lineage import LICENCE_TAG, SOURCE_TAG, teacher_tags
from stillhouse.promotion.promote import PromotionRequest, promote_model
from stillhouse.promotion.registry import Registry
from stillhouse.promotion.signing import SigningKeys
from stillhouse.stages.chain import model_input
from stillhouse.stages.context import StageContext, StageOutcome

GIT_SHA = "STILLHOUSE_GIT_SHA"
"""Environment variable by which an image says what it was built from."""


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
    terms = TermsReport.model_validate_json(context.input("terms").read_bytes())
    candidate = model_input(decision.candidate)
    promotion = promote_model(
        PromotionRequest(
            model=recipe.promotion.model,
            artifact=request.inputs[candidate],
            folder=context.input(candidate),
            decision=decision,
            approval=_approval(request.parameters.get("approval"), recipe.promotion.approval, decision),
            run_id=request.run_id,
            mlflow_run_id=context.mlflow_run_id,
            tags=_tags(context, decision, terms),
            teachers=terms.teachers,
            production=recipe.promotion.production,
            card=context.input("model-card").read_text(encoding="utf-8"),
        ),
        ledger=Ledger(context.store, recipe.promotion.model),
        registry=Registry(request.tracking_uri, SigningKeys.from_environment()),
    )
    context.save_bytes("promotion", pretty_json(promotion), ".json")
    done = "already is" if promotion.already_champion else "is now"
    return StageOutcome(
        summary=f"models:/{promotion.model}@champion {done} version {promotion.version}",
        metrics={"version": float(promotion.version), "ledger_sequence": float(promotion.ledger_sequence)},
    )


def _tags(context: StageContext, decision: Decision, terms: TermsReport) -> dict[str, str]:
    """Return where the version comes from: run, evidence, data, teachers, licences and code."""
    recipe, request = context.recipe, context.request
    inputs = {f"stillhouse.{name}_sha256": artifact.sha256 for name, artifact in request.inputs.items()}
    teacher = recipe.teacher.source or {"kind": "api", "title": recipe.teacher.title}
    return (
        inputs
        | teacher_tags(terms)
        | {
            "stillhouse.recipe": recipe.name,
            "stillhouse.run_id": request.run_id,
            "stillhouse.decision_sha256": decision.digest,
            "stillhouse.policy": f"{decision.policy} {decision.policy_sha256}",
            "stillhouse.evidence_sha256": decision.evidence_sha256,
            SOURCE_TAG: canonical_json(teacher).decode(),
            LICENCE_TAG: recipe.teacher.licence,
            "stillhouse.data_licence": recipe.data.train.licence,
            "stillhouse.code": _code(),
        }
    )


def _code() -> str:
    """Name the code that promotes: by commit where the image or its builder says which, else by its bytes."""
    commit = os.environ.get(GIT_SHA)
    rooms = sorted(path.parent.name for path in PACKAGE_ROOT.glob("*/__init__.py"))
    code = f"git {commit}" if commit else f"sha256 {code_version(tuple(rooms), ())}"
    return f"stillhouse {__version__}, {code}"


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
