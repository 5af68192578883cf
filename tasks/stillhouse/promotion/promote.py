"""From an approved decision to a champion, in steps that can be repeated from any point."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.contract import Artifact, Conflict, Decision, IntegrityError, NotPermitted, Promotion
from stillhouse.promotion.aliases import conclude, finish_open
from stillhouse.promotion.ledger import ActionEntry, Approval, Ledger, same_person
from stillhouse.promotion.registry import Registry
from stillhouse.recipe import ProductionConfig


@dataclass(frozen=True, kw_only=True)
class PromotionRequest:
    """What is to be promoted, and by what right."""

    model: str
    """Name of the registered model."""
    artifact: Artifact
    """The model folder in the object store."""
    folder: Path
    """Its verified files."""
    decision: Decision
    approval: Approval
    run_id: str
    """The workflow run."""
    mlflow_run_id: str
    """The MLflow run that a new version belongs to."""
    tags: Mapping[str, str]
    """Further tags of the version."""
    teachers: tuple[str, ...] = ()
    """Whose output the model contains."""
    card: str | None = None
    """Model card of the version, in Markdown."""
    production: ProductionConfig | None = None
    """Where a copy of the champion is to serve."""


def promote_model(request: PromotionRequest, *, ledger: Ledger, registry: Registry) -> Promotion:
    """Make the model champion.

    Finish what a killed action left -> register -> alias ``candidate`` -> load it back in a fresh process and predict
    -> append to the ledger by compare-and-swap -> aliases ``previous`` and ``champion`` -> read them back -> copy to
    production -> append the outcome. The ledger is what counts: the aliases follow from it, so after a kill anywhere
    the same call goes on where it stopped.

    Raises:
        NotPermitted: The verdict is not to promote, or the approval is for another decision or from the wrong person.
        Conflict: Another model became champion since the decision.
        IntegrityError: The decision is about another model, the ledger was changed, or the model does not load back.
        TryAgain: The registry or the store is away.
    """
    _check_right(request)
    model, sha256 = request.model, request.artifact.sha256
    history = ledger.verify()
    if history.open is not None and history.open.artifact.sha256 != sha256:
        history = finish_open(model, ledger=ledger, registry=registry)
    head = history.head
    is_head = head is not None and head.artifact.sha256 == sha256
    if not is_head:
        _check_champion(request, head)
    registry.create_model(model)
    champion = registry.aliases(model).get("champion")
    version = registry.register(
        model,
        request.folder,
        request.artifact,
        request.tags,
        mlflow_run_id=request.mlflow_run_id,
        card=request.card,
    )
    already_champion = is_head and champion == version
    if not already_champion:
        registry.set_alias(model, "candidate", version)
        registry.load_back(model, version, sha256)
    if head is None or not is_head:
        head = ledger.append_promotion(
            history,
            artifact=request.artifact,
            registered_version=version,
            champion_before=None if champion == version else champion,
            production=request.production,
            decision_sha256=request.decision.digest,
            run_id=request.run_id,
            approval=request.approval,
            teachers=request.teachers,
        )
    aliases = conclude(model, head, ledger=ledger, registry=registry)
    return Promotion(
        model=model,
        version=version,
        model_sha256=sha256,
        aliases=aliases,
        champion_before=aliases.get("previous"),
        ledger_sequence=head.sequence,
        ledger_sha256=head.digest,
        already_champion=already_champion,
    )


def _check_right(request: PromotionRequest) -> None:
    decision = request.decision
    if decision.verdict != "promote":
        raise NotPermitted(
            f"the verdict is '{decision.verdict}': nothing is promoted; read the decision for the reasons"
        )
    if request.approval.decision_sha256 != decision.digest:
        raise NotPermitted("the approval is for another decision; approve this one")
    if request.approval.mode == "two-person" and same_person(request.approval.who, request.approval.triggered_by):
        raise NotPermitted("two persons are needed: whoever triggered the run can't approve it; let another one answer")
    if decision.model_sha256 != request.artifact.sha256:
        raise IntegrityError("the decision is about another model; run the evaluation again")


def _check_champion(request: PromotionRequest, head: ActionEntry | None) -> None:
    champion = head.artifact.sha256 if head else None
    if champion != request.decision.champion_sha256:
        raise Conflict(
            f"{request.model} has another champion than the candidate was compared with; "
            "run again, to be compared with the new one"
        )
