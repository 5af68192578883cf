"""The question whether a student that passed the gate goes into production, and who answers it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException, TaskAwaitingInput

from stillhouse.contract import DataRejected, Decision, StageResult
from stillhouse.orchestration.airflow.operators import pull_result
from stillhouse.orchestration.airflow.params import recipe_of_run
from stillhouse.orchestration.deployment import Deployment
from stillhouse.stages.records import read_result
from stillhouse.store import read_artifact

AUTOMATIC = "automatic"
TIMED_OUT = "nobody: the time for an answer ran out"


class PromotionApproval(ApprovalOperator):
    """Asks a reviewer to approve the decision, or approves by itself where the recipe says so.

    Skips itself, and with it the promotion, unless the verdict is to promote. The answer is bound to the digest of the
    decision that was shown: it is worthless for any other.

    Args:
        recipe_file: The recipe file of the DAG.
    """

    ui_color = "#dcecd9"

    def __init__(self, *, recipe_file: str, **kwargs: Any) -> None:
        super().__init__(subject="Promote this student?", defaults=self.REJECT, **kwargs)
        self.recipe_file = recipe_file

    def execute(self, context: Context) -> dict[str, Any]:
        """Return the approval at once in mode ``auto``; else show the decision and wait for a person.

        Raises:
            AirflowSkipException: There is nothing to approve.
            TaskAwaitingInput: Airflow parks the task until the answer comes.
        """
        promotion = recipe_of_run(Path(self.recipe_file), context["params"]).promotion
        result, decision = _decision(context)
        if decision.verdict != "promote":
            raise AirflowSkipException(f"the verdict is '{decision.verdict}': nothing to approve, nothing is promoted")
        if Deployment.from_environment().tracking_uri is None:
            raise AirflowSkipException("no MLflow server in this deployment: set MLFLOW_TRACKING_URI to promote")
        if promotion.approval == "auto":
            self.log.info("the recipe approves by itself (promotion.approval: auto), decision %s", decision.digest)
            return _approval(decision.digest, by=AUTOMATIC, at=datetime.now(UTC))
        self.subject = f"Promote to {promotion.model}@champion? Decision {decision.digest[:12]}"
        self.body = _question(read_artifact(result.outputs["card"]).decode(), decision.digest)
        self.response_timeout = timedelta(hours=promotion.approval_hours)
        try:
            return dict(super().execute(context))
        except TaskAwaitingInput as parked:
            raise TaskAwaitingInput(
                method_name=parked.method_name,
                kwargs={"shown_sha256": decision.digest},
                timeout=parked.timeout,
            ) from None

    def execute_complete(self, context: Context, event: dict[str, Any], shown_sha256: str = "") -> dict[str, Any]:
        """Take the answer; a rejection skips the promotion.

        Raises:
            DataRejected: The decision is no longer the one that was shown.
        """
        if _decision(context)[1].digest != shown_sha256:
            raise DataRejected("the decision changed after it was shown; clear this task to ask again")
        answer = super().execute_complete(context, event)
        user = answer["responded_by_user"]
        by = user.get("name") or user.get("id") if isinstance(user, Mapping) else getattr(user, "name", None)
        return _approval(
            shown_sha256,
            by=by or TIMED_OUT,
            at=answer["responded_at"],
            approved=answer["chosen_options"] == [self.APPROVE],
        )


def _decision(context: Context) -> tuple[StageResult, Decision]:
    result = read_result(pull_result(context, "decide"))
    return result, Decision.model_validate_json(read_artifact(result.outputs["decision"]))


def _approval(decision_sha256: str, *, by: str, at: datetime, approved: bool = True) -> dict[str, Any]:
    return {"decision_sha256": decision_sha256, "approved": approved, "by": by, "at": at.isoformat()}


def _question(card: str, digest: str) -> str:
    return f"{card.rstrip()}\n\n---\n\nYour answer counts for this decision only: `{digest}`\n"
