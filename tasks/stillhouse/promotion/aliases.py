"""The registry follows the ledger: which alias leads where, and how an action is brought to its end.

MLflow moves an alias without asking what it was before. So whoever moves one reads the ledger again afterwards, and
goes on until both agree. The last one to move an alias has then seen the newest entry, however many were at work.
"""

import logging
from contextlib import suppress

from stillhouse.contract import (
    ConfigurationError,
    Conflict,
    DataRejected,
    IntegrityError,
    NotPermitted,
    StillhouseError,
)
from stillhouse.promotion.ledger import ActionEntry, History, Ledger
from stillhouse.promotion.production import copy_to_production
from stillhouse.promotion.registry import Registry

logger = logging.getLogger(__name__)

SEQUENCE_TAG = "stillhouse.ledger_sequence"
ENTRY_TAG = "stillhouse.ledger_sha256"

_FINAL = (DataRejected, NotPermitted, ConfigurationError)  # what no retry can cure
_TURNS = 10


def wanted_aliases(model: str, history: History, registry: Registry) -> dict[str, int | None]:
    """Return the version that each alias must lead to by the ledger, or None for no version.

    Raises:
        IntegrityError: The champion is not in the registry.
    """
    if not history.entries:
        return {}
    head, previous = history.head, history.previous
    if head is None:  # every action was annulled: back to what was before the ledger
        return {"previous": None, "champion": _unrecorded(model, history, registry)}
    champion = _registered(model, head, registry)
    if previous is None:
        return {"previous": _unrecorded(model, history, registry), "champion": champion}
    return {"previous": registry.find(model, previous.artifact.sha256), "champion": champion}


def follow_ledger(model: str, *, ledger: Ledger, registry: Registry) -> dict[str, int]:
    """Move ``previous`` and ``champion`` to where the ledger says, and return all aliases as read back.

    Raises:
        Conflict: Somebody else keeps moving them.
        IntegrityError: The ledger was changed, or the champion is not in the registry.
    """
    for _ in range(_TURNS):
        wanted = wanted_aliases(model, ledger.verify(), registry)
        found = registry.aliases(model)
        if all(found.get(alias) == version for alias, version in wanted.items()):
            return found
        for alias, version in wanted.items():
            if version is None and alias in found:
                registry.delete_alias(model, alias)
            elif version is not None and found.get(alias) != version:
                registry.set_alias(model, alias, version)
    raise Conflict(f"the aliases of {model} are moved by somebody else meanwhile; run again")


def conclude(model: str, entry: ActionEntry, *, ledger: Ledger, registry: Registry) -> dict[str, int]:
    """Do what follows from an entry: tag its version, move the aliases, read them back, copy it to production if the
    entry says where, append the outcome.

    Every step can be repeated, by this process or another. What no retry can cure annuls the action.

    Returns:
        All aliases, as read back.

    Raises:
        Conflict: Another action followed meanwhile, or somebody else moves the aliases.
        IntegrityError: The ledger was changed, or the version is not in the registry.
    """
    try:
        version = _registered(model, entry, registry)
        registry.set_tags(model, version, {SEQUENCE_TAG: str(entry.sequence), ENTRY_TAG: entry.digest})
        aliases = follow_ledger(model, ledger=ledger, registry=registry)
        _serve(model, ledger=ledger, registry=registry)
    except _FINAL as error:
        annul(model, entry, str(error), ledger=ledger, registry=registry)
        raise
    outcome = ledger.append_outcome(entry, aliases=aliases)
    if outcome.status == "failed" or ledger.head() != entry:
        why = outcome.detail or "another promotion or rollback followed"
        raise Conflict(f"{model}: ledger entry {entry.sequence} no longer counts: {why}")
    logger.info("%s version %s is champion", model, version)
    return aliases


def _serve(model: str, *, ledger: Ledger, registry: Registry) -> None:
    """Bring a copy of the champion to production, if its entry says where, as often as it takes to be today's."""
    for _ in range(_TURNS):
        head = ledger.head()
        if head is None or head.production is None:
            return
        copy_to_production(
            head.production,
            source=registry,
            model=model,
            version=_registered(model, head, registry),
            sha256=head.artifact.sha256,
            keys=registry.keys,
        )
        if ledger.head() == head:
            return
    raise Conflict(f"promotions of {model} keep coming; run again")


def annul(model: str, entry: ActionEntry, failure: str, *, ledger: Ledger, registry: Registry) -> None:
    """Append that the action failed, and give the aliases back to whoever was champion before it.

    An action that is done stays done.
    """
    outcome = ledger.append_outcome(entry, failure=failure)
    if outcome.status == "failed":
        logger.warning("%s: ledger entry %s (%s) is annulled: %s", model, entry.sequence, entry.action, failure)
        with suppress(StillhouseError):  # the ledger is right from here on; reconcile finds what the aliases lack
            follow_ledger(model, ledger=ledger, registry=registry)


def finish_open(model: str, *, ledger: Ledger, registry: Registry) -> History:
    """Bring the newest action to its end if it has none, as a killed process leaves it, and return the ledger.

    The model is loaded back first. If it is gone or broken, the action is annulled.

    Raises:
        IntegrityError: The ledger was changed.
        Conflict: Somebody else moves the aliases.
    """
    entry = ledger.verify().open
    if entry is not None:
        try:
            checked_version(model, entry, registry)
        except DataRejected as error:
            annul(model, entry, str(error), ledger=ledger, registry=registry)
        else:
            conclude(model, entry, ledger=ledger, registry=registry)
    return ledger.verify()


def checked_version(model: str, entry: ActionEntry, registry: Registry) -> int:
    """Return the version that holds the entry's model, after it was loaded back in a fresh process.

    Raises:
        IntegrityError: It is gone, does not load, or has other files.
    """
    version = _registered(model, entry, registry)
    registry.load_back(model, version, entry.artifact.sha256)
    return version


def _registered(model: str, entry: ActionEntry, registry: Registry) -> int:
    version = registry.find(model, entry.artifact.sha256)
    if version is None:
        raise IntegrityError(
            f"{model}: version {entry.registered_version} of ledger entry {entry.sequence} is not in the registry"
        )
    return version


def _unrecorded(model: str, history: History, registry: Registry) -> int | None:
    """Return the version that others had made champion before the ledger began, unless it is gone."""
    version = history.unrecorded
    if version is None:
        return None
    try:
        registry.tags(model, version)
    except ConfigurationError:
        return None
    return version
