"""The question whether a student that passed the gate goes into production, and who answers it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowSkipException, TaskAwaitingInput

from stillhouse.contract import DataRejected, Decision, NotPermitted, StageResult
from stillhouse.orchestration.airflow.params import recipe_of_run
from stillhouse.orchestration.airflow.stage import pull_result, run_id_of
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.describe import mlflow_workflow_url
from stillhouse.promotion.ledger import same_person
from stillhouse.recipe import PromotionConfig, load_recipe
from stillhouse.stages.records import read_result
from stillhouse.store import read_artifact

AUTOMATIC = "automatic"
TIMED_OUT = "nobody: the time for an answer ran out"

_BY_PEOPLE = ("manual", "backfill", "asset_materialization")
"""Types of run that only a person starts."""


class PromotionApproval(ApprovalOperator):
    """Asks a reviewer to approve the decision, or approves by itself where the recipe says so.

    Skips itself, and with it the promotion, unless the verdict is to promote. The answer is bound to the digest of the
    decision that was shown: it is worthless for any other.

    With ``two-person``, who triggered the run can reject and not approve. A run that no person triggered, by a schedule
    or an asset, needs one reviewer: the recipe was reviewed when it was merged. A run that a person must have triggered
    and whose person Airflow does not name can't be promoted. A run's parameters can't lower ``two-person``.

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
            NotPermitted: Two persons are needed, and it is not known who triggered the run, or its parameters ask for
                less.
            TaskAwaitingInput: Airflow parks the task until the answer comes.
        """
        promotion = self._promotion(context)
        result, decision = _decision(context)
        if decision.verdict != "promote":
            raise AirflowSkipException(f"the verdict is '{decision.verdict}': nothing to approve, nothing is promoted")
        deployment = Deployment.from_environment()
        tracking_uri = deployment.tracking_uri
        if tracking_uri is None:
            raise AirflowSkipException("no MLflow server in this deployment: set MLFLOW_TRACKING_URI to promote")
        if promotion.approval == "auto":
            self.log.info("the recipe approves by itself (promotion.approval: auto), decision %s", decision.digest)
            return _approval(context, decision.digest, mode="auto", by=AUTOMATIC, at=datetime.now(UTC))
        if promotion.approval == "two-person":
            _check_trigger(context)
        self.subject = f"Promote to {promotion.model}@champion? Decision {decision.digest[:12]}"
        self.body = _question(
            read_artifact(result.outputs["card"]).decode(),
            decision.digest,
            runs=mlflow_workflow_url(
                tracking_uri, context["dag"].dag_id, run_id_of(context), page=deployment.tracking_page
            ),
            not_by=triggered_by(context) if promotion.approval == "two-person" else None,
        )
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
            NotPermitted: Two persons are needed, and who approves has triggered the run.
        """
        promotion = self._promotion(context)
        if _decision(context)[1].digest != shown_sha256:
            raise DataRejected("the decision changed after it was shown; clear this task to ask again")
        answer = super().execute_complete(context, event)
        names = _names(answer["responded_by_user"])
        approved = answer["chosen_options"] == [self.APPROVE]
        if approved and promotion.approval == "two-person":
            _check_second_person(names, triggered_by(context))
        return _approval(
            context,
            shown_sha256,
            mode=promotion.approval,
            by=names[0] if names else TIMED_OUT,
            at=answer["responded_at"],
            approved=approved,
        )

    def _promotion(self, context: Context) -> PromotionConfig:
        """Return the section ``promotion`` of this run's recipe."""
        file = Path(self.recipe_file)
        promotion = recipe_of_run(file, context["params"]).promotion
        if promotion.approval != "two-person" and load_recipe(file).promotion.approval == "two-person":
            raise NotPermitted("the recipe asks for two persons (promotion.approval); a run can't ask for less")
        return promotion


def triggered_by(context: Context) -> str | None:
    """Return who triggered the run; None if no person did, or none that Airflow knows."""
    name = context["dag_run"].triggering_user_name
    return str(name) if name else None


def _check_trigger(context: Context) -> None:
    run_type = context["dag_run"].run_type
    if triggered_by(context) is None and getattr(run_type, "value", run_type) in _BY_PEOPLE:
        raise NotPermitted(
            "Airflow does not say who triggered this run, so nobody can be the second person; trigger it in the UI or "
            "by the REST API, as a known user"
        )


def _names(user: Any) -> list[str]:
    """Return the name and the id of the user who answered, or nothing if nobody did."""
    if user is None:
        return []
    found = [user.get(field) if isinstance(user, Mapping) else getattr(user, field, None) for field in ("name", "id")]
    return [str(name) for name in found if name]


def _check_second_person(names: list[str], trigger: str | None) -> None:
    if not names:
        raise NotPermitted("Airflow does not say who approved; clear this task and answer as a known user")
    if any(same_person(name, trigger) for name in names):
        raise NotPermitted(
            f"{names[0]} triggered this run and can't approve it (promotion.approval: two-person); clear this task and "
            "let another person answer"
        )


def _decision(context: Context) -> tuple[StageResult, Decision]:
    result = read_result(pull_result(context, "decide"))
    return result, Decision.model_validate_json(read_artifact(result.outputs["decision"]))


def _approval(
    context: Context, decision_sha256: str, *, mode: str, by: str, at: datetime, approved: bool = True
) -> dict[str, Any]:
    return {
        "decision_sha256": decision_sha256,
        "mode": mode,
        "approved": approved,
        "by": by,
        "at": at.isoformat(),
        "triggered_by": triggered_by(context),
    }


def _question(card: str, digest: str, *, runs: str, not_by: str | None) -> str:
    second = f"\n\n**Two persons are needed:** {not_by} triggered this run and can't approve it." if not_by else ""
    return (
        f"{card.rstrip()}\n\n[The runs behind it in MLflow]({runs}); the report is an artifact of `decide`."
        f"\n\n---\n\nYour answer counts for this decision only: `{digest}`{second}\n"
    )
