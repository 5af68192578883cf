"""From an approved decision to a champion, in steps that can be repeated from any point."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.contract import Artifact, Conflict, Decision, IntegrityError, NotPermitted, Promotion
from stillhouse.promotion.ledger import Approval, Ledger, LedgerEntry
from stillhouse.promotion.registry import Registry

logger = logging.getLogger(__name__)


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


def promote_model(request: PromotionRequest, *, ledger: Ledger, registry: Registry) -> Promotion:
    """Make the model champion.

    Register it -> alias ``candidate`` -> load it back in a fresh process and predict -> append to the ledger by
    compare-and-swap -> aliases ``previous`` and ``champion`` -> read them back. The ledger is what counts: the aliases
    follow from it, so after a kill anywhere the same call goes on where it stopped.

    Raises:
        NotPermitted: The verdict is not to promote, or the approval is for another decision.
        Conflict: Another model became champion since the decision.
        IntegrityError: The decision is about another model, the ledger was changed, or the model does not load back.
        TryAgain: The registry or the store is away.
    """
    _check_right(request)
    entries = ledger.verify()
    head = entries[-1] if entries else None
    is_head = head is not None and head.artifact.sha256 == request.artifact.sha256
    if not is_head:
        _check_champion(request, head)
    aliases_before = registry.aliases(request.model)
    version = registry.register(
        request.model, request.folder, request.artifact, request.tags, mlflow_run_id=request.mlflow_run_id
    )
    already_champion = is_head and aliases_before.get("champion") == version
    if not already_champion:
        registry.set_alias(request.model, "candidate", version)
        registry.load_back(request.model, version, request.artifact.sha256)
    if head is None or not is_head:
        head = ledger.append(
            head,
            artifact=request.artifact,
            decision_sha256=request.decision.digest,
            run_id=request.run_id,
            approval=request.approval,
            registered_version=version,
        )
        entries.append(head)
    before = _champion_before(entries, registry, request.model, aliases_before, version)
    _move_aliases(registry, request.model, version=version, before=before)
    registry.set_tags(
        request.model,
        version,
        {"stillhouse.ledger_sequence": str(head.sequence), "stillhouse.ledger_sha256": head.digest},
    )
    return Promotion(
        model=request.model,
        version=version,
        model_sha256=request.artifact.sha256,
        aliases=_read_back(registry, request.model, version),
        champion_before=before,
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
    if decision.model_sha256 != request.artifact.sha256:
        raise IntegrityError("the decision is about another model; run the evaluation again")


def _check_champion(request: PromotionRequest, head: LedgerEntry | None) -> None:
    champion = head.artifact.sha256 if head else None
    if champion != request.decision.champion_sha256:
        raise Conflict(
            f"{request.model} has another champion than the candidate was compared with; "
            "run again, to be compared with the new one"
        )


def _champion_before(
    entries: list[LedgerEntry], registry: Registry, model: str, aliases: Mapping[str, int], version: int
) -> int | None:
    """Return the version of the newest other model in the ledger, or, for the first promotion, of the alias."""
    champion = entries[-1].artifact.sha256
    for entry in reversed(entries):
        if entry.artifact.sha256 != champion:
            return registry.find(model, entry.artifact.sha256)
    unrecorded = aliases.get("champion")
    return None if unrecorded == version else unrecorded


def _move_aliases(registry: Registry, model: str, *, version: int, before: int | None) -> None:
    wanted = {"champion": version} if before is None else {"previous": before, "champion": version}
    found = registry.aliases(model)
    for alias, target in wanted.items():
        if found.get(alias) != target:
            registry.set_alias(model, alias, target)


def _read_back(registry: Registry, model: str, version: int) -> dict[str, int]:
    aliases = registry.aliases(model)
    if aliases.get("champion") != version:
        raise Conflict(f"{model}@champion was moved by somebody else meanwhile; run again")
    logger.info("%s version %s is champion", model, version)
    return aliases
