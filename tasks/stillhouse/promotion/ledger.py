"""Who was champion when, and why: an append-only, hash-chained ledger in the object store."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from stillhouse.contract import Artifact, Conflict, IntegrityError, canonical_json, pretty_json, sha256_of
from stillhouse.recipe import Config, ProductionConfig, Sha256
from stillhouse.store import ObjectStore

SchemaId = Literal["stillhouse/ledger-entry/2"]
SCHEMA_ID: SchemaId = "stillhouse/ledger-entry/2"

_ENTRY_NAME = re.compile(r"\d{8}\.json")


class Approval(Config):
    """Who said yes to a promotion. It holds for one decision only."""

    mode: Literal["auto", "human", "two-person"]
    """``auto``: the recipe approves whatever passes the gate."""
    who: str
    """Name of the reviewer, or of the recipe."""
    when: AwareDatetime
    decision_sha256: Sha256
    """Digest of the decision that was approved."""
    triggered_by: str | None = None
    """Who started the workflow run; None where no person did, such as for a scheduled run."""


def same_person(one: str, other: str | None) -> bool:
    """Tell whether two user names are of one person: case and white space around them don't count."""
    return other is not None and one.strip().casefold() == other.strip().casefold()


class _Entry(Config):
    """What every link of the chain has."""

    schema_id: SchemaId = SCHEMA_ID
    sequence: int = Field(ge=1)
    """Position in the ledger, without gaps."""
    previous_sha256: Sha256 | None
    """Digest of the entry before; None for the first one."""
    at: AwareDatetime

    @property
    def digest(self) -> str:
        """SHA-256 of the entry's canonical JSON."""
        return sha256_of(canonical_json(self))


class _ActionEntry(_Entry):
    """An action that makes a model the champion."""

    artifact: Artifact
    """The model folder that became champion."""
    registered_version: int = Field(ge=1)
    """In the model registry, at the time of writing."""
    champion_before: int | None
    """Version behind the alias ``champion`` until then, which may have been set by others; None if there was none."""
    production: ProductionConfig | None = None
    """Where a copy of the champion serves."""


class PromotionEntry(_ActionEntry):
    """A student that passed the gate and was approved."""

    action: Literal["promote"] = "promote"
    decision_sha256: Sha256
    run_id: str
    """The workflow run that made and judged the model."""
    approval: Approval
    teachers: tuple[str, ...] = Field(default=(), exclude_if=lambda teachers: not teachers)
    """Whose output the model contains; left out of the file where it is empty, as in entries of earlier versions."""


class RollbackEntry(_ActionEntry):
    """A champion of earlier days, brought back."""

    action: Literal["rollback"] = "rollback"
    reason: str = Field(min_length=1)
    who: str = Field(min_length=1)
    """Who asked for it."""
    asked_version: int | None
    """The version that was asked for; None for whatever was champion before."""


class OutcomeEntry(_Entry):
    """How the action of the entry before this one ended."""

    action: Literal["outcome"] = "outcome"
    concludes: int = Field(ge=1)
    """Sequence of the action."""
    status: Literal["done", "failed"]
    """``failed``: the action is annulled. Whoever was champion before it still is."""
    detail: str
    """What failed, in one line; empty if nothing did."""
    aliases: dict[str, int] = {}
    """Version behind each alias, as read back from the registry at the end."""


ActionEntry = PromotionEntry | RollbackEntry
LedgerEntry = Annotated[PromotionEntry | RollbackEntry | OutcomeEntry, Field(discriminator="action")]
_PARSER: TypeAdapter[PromotionEntry | RollbackEntry | OutcomeEntry] = TypeAdapter(LedgerEntry)


@dataclass(frozen=True, kw_only=True)
class History:
    """A ledger whose chain was verified, as it was at one moment."""

    entries: tuple[LedgerEntry, ...]
    """All of them, oldest first: an action, its outcome, the next action, and so on."""

    @property
    def tail(self) -> LedgerEntry | None:
        """The newest entry of any kind."""
        return self.entries[-1] if self.entries else None

    @property
    def open(self) -> ActionEntry | None:
        """The newest action, if it has no outcome yet: somebody is at work, or was killed."""
        return None if isinstance(self.tail, OutcomeEntry) else self.tail

    @property
    def actions(self) -> list[ActionEntry]:
        """The actions that stand, oldest first: all but those that were annulled."""
        failed = {entry.concludes for entry in self.outcomes.values() if entry.status == "failed"}
        actions = [entry for entry in self.entries if not isinstance(entry, OutcomeEntry)]
        return [entry for entry in actions if entry.sequence not in failed]

    @property
    def outcomes(self) -> dict[int, OutcomeEntry]:
        """The outcome of each action that has one, by the action's sequence."""
        return {entry.concludes: entry for entry in self.entries if isinstance(entry, OutcomeEntry)}

    @property
    def head(self) -> ActionEntry | None:
        """The action that made today's champion, if there is one."""
        return next(reversed(self.actions), None)

    @property
    def previous(self) -> ActionEntry | None:
        """The newest action that made another model champion than today's: where a rollback leads."""
        actions = self.actions
        others = (entry for entry in reversed(actions) if entry.artifact.sha256 != actions[-1].artifact.sha256)
        return next(others, None)

    @property
    def unrecorded(self) -> int | None:
        """The version that others had made champion before the ledger began, if there was one."""
        first = self.entries[0] if self.entries else None
        return None if first is None or isinstance(first, OutcomeEntry) else first.champion_before


class Ledger:
    """The promotions and rollbacks of one registered model, an object each: ``ledger/MODEL/00000001.json`` and on.

    Appending is a compare-and-swap on the next key, so of two racing actions one wins and the other is told. An action
    can follow only when the one before it has its outcome, so no two of them ever mix.

    Args:
        store: Where the ledger is kept.
        model: Name of the registered model.
    """

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._store = store
        self._model = model

    def head(self) -> ActionEntry | None:
        """Return the newest action that stands, which made today's champion. The chain is not verified.

        Raises:
            IntegrityError: An entry can't be read.
        """
        annulled = None
        for sequence in reversed(self._sequences()):
            entry = self._read(sequence)
            if isinstance(entry, OutcomeEntry):
                annulled = entry.concludes if entry.status == "failed" else None
            elif sequence != annulled:
                return entry
        return None

    def verify(self) -> History:
        """Walk the chain and return what it tells.

        The digest of the newest entry is in no other entry; the registry keeps that of a version's newest action as a
        tag, which `stillhouse.promotion.reconcile` compares.

        Raises:
            IntegrityError: An entry is missing, changed or out of place; the message names its sequence number.
        """
        entries = [self._read(sequence) for sequence in self._sequences()]
        previous: LedgerEntry | None = None
        for position, entry in enumerate(entries, start=1):
            where = f"ledger of {self._model}, entry {position}"
            if entry.sequence != position:
                raise IntegrityError(f"{where} is missing; restore it from a backup before anything is promoted")
            if entry.previous_sha256 != (previous.digest if previous else None):
                raise IntegrityError(f"{where} does not follow from the entry before; one of them was changed")
            if not _is_its_turn(entry, previous):
                raise IntegrityError(f"{where} is out of place: actions and outcomes must alternate")
            previous = entry
        return History(entries=tuple(entries))

    def append_promotion(
        self,
        history: History,
        *,
        artifact: Artifact,
        registered_version: int,
        champion_before: int | None,
        production: ProductionConfig | None = None,
        decision_sha256: str,
        run_id: str,
        approval: Approval,
        teachers: tuple[str, ...] = (),
    ) -> PromotionEntry:
        """Write a promotion that follows ``history``, which is the ledger as it was when that was decided.

        Raises:
            Conflict: Something was written since, or the action before has no outcome yet.
        """
        entry = PromotionEntry(
            **_link(history),
            artifact=artifact,
            registered_version=registered_version,
            champion_before=champion_before,
            production=production,
            decision_sha256=decision_sha256,
            run_id=run_id,
            approval=approval,
            teachers=teachers,
        )
        self._append_action(history, entry)
        return entry

    def append_rollback(
        self,
        history: History,
        *,
        artifact: Artifact,
        registered_version: int,
        champion_before: int | None,
        production: ProductionConfig | None = None,
        reason: str,
        who: str,
        asked_version: int | None,
    ) -> RollbackEntry:
        """Write a rollback that follows ``history``; see `append_promotion`.

        Raises:
            Conflict: Something was written since, or the action before has no outcome yet.
        """
        entry = RollbackEntry(
            **_link(history),
            artifact=artifact,
            registered_version=registered_version,
            champion_before=champion_before,
            production=production,
            reason=reason,
            who=who,
            asked_version=asked_version,
        )
        self._append_action(history, entry)
        return entry

    def append_outcome(
        self, action: ActionEntry, *, failure: str = "", aliases: Mapping[str, int] | None = None
    ) -> OutcomeEntry:
        """Write how ``action`` ended, unless that is written already; return what counts.

        Args:
            action: The newest action, or one that has its outcome.
            failure: What failed, which annuls the action; empty if it is done.
            aliases: Version behind each alias, as read back.

        Raises:
            IntegrityError: The ledger does not hold the action.
        """
        history = self.verify()
        found = history.outcomes.get(action.sequence)
        if found is not None:
            return found
        if history.open != action:
            raise IntegrityError(f"ledger of {self._model}: entry {action.sequence} is no longer what was written")
        entry = OutcomeEntry(
            **_link(history),
            concludes=action.sequence,
            status="failed" if failure else "done",
            detail=failure,
            aliases=dict(aliases or {}),
        )
        try:
            self._write(entry)
        except Conflict:  # an outcome is all that can follow an action: another process concluded it first
            return self.append_outcome(action)
        return entry

    def _append_action(self, history: History, entry: ActionEntry) -> None:
        if history.open is not None:
            raise Conflict(f"ledger of {self._model}: entry {history.open.sequence} has no outcome yet; run again")
        try:
            self._write(entry)
        except Conflict:
            raise Conflict(
                f"ledger of {self._model}: another promotion or rollback was first (entry {entry.sequence}); "
                "run again, on the ground of what is champion now"
            ) from None

    def _write(self, entry: LedgerEntry) -> None:
        self._store.put_if(self._key(entry.sequence), pretty_json(entry), version=None)

    def _sequences(self) -> list[int]:
        names = (key.rpartition("/")[2] for key in self._store.keys(f"ledger/{self._model}/"))
        return [int(name[:8]) for name in names if _ENTRY_NAME.fullmatch(name)]

    def _key(self, sequence: int) -> str:
        return f"ledger/{self._model}/{sequence:08d}.json"

    def _read(self, sequence: int) -> LedgerEntry:
        where = f"ledger of {self._model}, entry {sequence}"
        try:
            data = self._store.get(self._key(sequence))
            entry = _PARSER.validate_json(data)
        except FileNotFoundError:
            raise IntegrityError(f"{where} was removed while it was read; restore it from a backup") from None
        except ValidationError:
            other = _other_format(data)
            if other:
                raise IntegrityError(
                    f"{where} is of format {other}, and this version reads {SCHEMA_ID} only; "
                    f"keep ledger/{self._model}/ elsewhere and promote again"
                ) from None
            raise IntegrityError(f"{where} is damaged; restore it from a backup") from None
        if entry.sequence != sequence:
            raise IntegrityError(f"{where} claims to be entry {entry.sequence}")
        return entry


def _link(history: History) -> dict[str, Any]:
    """Return the fields that tie a new entry to ``history``."""
    tail = history.tail
    return {
        "sequence": tail.sequence + 1 if tail else 1,
        "previous_sha256": tail.digest if tail else None,
        "at": datetime.now(UTC),
    }


def _is_its_turn(entry: LedgerEntry, previous: LedgerEntry | None) -> bool:
    if isinstance(entry, OutcomeEntry):
        return isinstance(previous, ActionEntry) and entry.concludes == previous.sequence
    return previous is None or isinstance(previous, OutcomeEntry)


def _other_format(data: bytes) -> str | None:
    """Return the schema id of an entry that another version of Stillhouse wrote, if that is what ``data`` is."""
    try:
        schema_id = json.loads(data)["schema_id"]
    except (ValueError, LookupError, TypeError):
        return None
    return (
        schema_id if re.fullmatch(r"stillhouse/ledger-entry/\d+", str(schema_id)) and schema_id != SCHEMA_ID else None
    )
