"""Back to a champion of earlier days: verified before anything is moved, and written down with its reason."""

from typing import Literal

from pydantic import Field

from stillhouse.contract import ConfigurationError, NotPermitted
from stillhouse.promotion.aliases import checked_version, conclude, finish_open
from stillhouse.promotion.ledger import ActionEntry, History, Ledger, RollbackEntry
from stillhouse.promotion.registry import DIGEST_TAG, Registry
from stillhouse.recipe import Config, Sha256


class Rollback(Config):
    """What a rollback did, as read back from the registry."""

    schema_id: Literal["stillhouse/rollback/1"] = "stillhouse/rollback/1"
    model: str
    """Name of the registered model."""
    version: int = Field(ge=1)
    """Champion now."""
    model_sha256: Sha256
    champion_before: int | None
    """Version behind the alias ``champion`` until then; None if it led nowhere."""
    aliases: dict[str, int]
    """Version behind each alias, afterwards."""
    reason: str
    who: str
    ledger_sequence: int = Field(ge=1)
    ledger_sha256: Sha256
    """Digest of the ledger's entry."""
    already_done: bool
    """The same rollback was the newest action before this was asked for; nothing was appended."""


def roll_back(
    model: str, *, ledger: Ledger, registry: Registry, target: int | None = None, reason: str, who: str
) -> Rollback:
    """Make an earlier champion the champion again, and the present one ``previous``.

    Finish what a killed action left -> load the target back in a fresh process, which checks its files and lets it
    predict -> append to the ledger by compare-and-swap -> aliases -> read them back -> copy to production, which has
    it still -> append the outcome. It needs no GPU and no copy of the model in the object store. Asked the same by the
    same person again, it moves nothing more: a retry after a kill must not bring the bad model back.

    Args:
        model: Name of the registered model.
        ledger: Its ledger.
        registry: Where it is registered.
        target: Version to go back to, which was champion once; None for the champion before today's.
        reason: Why, in words that those who read the ledger understand.
        who: Who asks for it.

    Raises:
        ConfigurationError: There is no reason, no previous champion or no such version, the version is champion
            already, or the champion came by a rollback itself and no target is named.
        NotPermitted: The version was never champion.
        IntegrityError: The ledger was changed, or the version does not load back.
        Conflict: Another promotion or rollback was first.
        TryAgain: The registry or the store is away.
    """
    reason, who = reason.strip(), who.strip()
    if not reason or not who:
        raise ConfigurationError("a rollback needs a reason, and the name of who asks for it")
    history = ledger.verify()
    if not _is_same(history.open, target, reason, who):
        history = finish_open(model, ledger=ledger, registry=registry)
    entry = history.head
    already_done = _is_same(entry, target, reason, who)
    if entry is None or not already_done:
        goal = _goal(model, history, registry, target)
        entry = ledger.append_rollback(
            history,
            artifact=goal.artifact,
            registered_version=checked_version(model, goal, registry),
            champion_before=registry.aliases(model).get("champion"),
            production=history.head.production if history.head else None,  # where the champion to be replaced serves
            reason=reason,
            who=who,
            asked_version=target,
        )
    aliases = conclude(model, entry, ledger=ledger, registry=registry)
    return Rollback(
        model=model,
        version=aliases["champion"],
        model_sha256=entry.artifact.sha256,
        champion_before=entry.champion_before,
        aliases=aliases,
        reason=reason,
        who=who,
        ledger_sequence=entry.sequence,
        ledger_sha256=entry.digest,
        already_done=already_done,
    )


def _is_same(entry: ActionEntry | None, target: int | None, reason: str, who: str) -> bool:
    asked = (target, reason, who)
    return isinstance(entry, RollbackEntry) and (entry.asked_version, entry.reason, entry.who) == asked


def _goal(model: str, history: History, registry: Registry, target: int | None) -> ActionEntry:
    """Return the newest action that made the wanted model champion."""
    if target is not None:
        return _named_goal(model, history, registry, target)
    previous, head = history.previous, history.head
    if previous is None:
        raise ConfigurationError(f"{model} has no previous champion in its ledger; there is nothing to go back to")
    if isinstance(head, RollbackEntry):
        raise ConfigurationError(
            f"{model} was rolled back already (ledger entry {head.sequence}, by {head.who}), and going back once more "
            f"would bring back what was left then; name the version to go to, such as {previous.registered_version}"
        )
    return previous


def _named_goal(model: str, history: History, registry: Registry, target: int) -> ActionEntry:
    sha256 = registry.tags(model, target).get(DIGEST_TAG)
    goal = next((entry for entry in reversed(history.actions) if entry.artifact.sha256 == sha256), None)
    if goal is None:
        raise NotPermitted(f"version {target} of {model} was never champion; it must be promoted, not rolled back to")
    # Where the ledger and the alias differ, a rollback to either settles which one counts.
    if goal == history.head and registry.aliases(model).get("champion") == target:
        raise ConfigurationError(f"version {target} of {model} is the champion; there is nothing to go back to")
    return goal
