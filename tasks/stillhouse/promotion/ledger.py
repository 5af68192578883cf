"""Who was champion when, and why: an append-only, hash-chained ledger in the object store."""

import re
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field, ValidationError

from stillhouse.contract import Artifact, Conflict, IntegrityError, canonical_json, pretty_json, sha256_of
from stillhouse.recipe import Config, Sha256
from stillhouse.store import ObjectStore

_ENTRY_NAME = re.compile(r"\d{8}\.json")


class Approval(Config):
    """Who said yes to a promotion. It holds for one decision only."""

    mode: Literal["auto", "human"]
    """``auto``: the recipe approves whatever passes the gate."""
    who: str
    """Name of the reviewer, or of the recipe."""
    when: AwareDatetime
    decision_sha256: Sha256
    """Digest of the decision that was approved."""


class LedgerEntry(Config):
    """One promotion."""

    schema_id: Literal["stillhouse/ledger-entry/1"] = "stillhouse/ledger-entry/1"
    sequence: int = Field(ge=1)
    """Position in the ledger, without gaps."""
    previous_sha256: Sha256 | None
    """Digest of the entry before; None for the first one."""
    action: Literal["promote"] = "promote"
    artifact: Artifact
    """The model folder that became champion."""
    decision_sha256: Sha256
    run_id: str
    """The workflow run that made and judged the model."""
    approval: Approval
    registered_version: int = Field(ge=1)
    """In the model registry, at the time of writing."""
    at: AwareDatetime

    @property
    def digest(self) -> str:
        """SHA-256 of the entry's canonical JSON."""
        return sha256_of(canonical_json(self))


class Ledger:
    """The promotions of one registered model, one object each: ``ledger/MODEL/00000001.json`` and on.

    Appending is a compare-and-swap on the next key, so of two racing promotions one wins and the other is told.

    Args:
        store: Where the ledger is kept.
        model: Name of the registered model.
    """

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._store = store
        self._model = model

    def head(self) -> LedgerEntry | None:
        """Return the newest entry, if there is one.

        Raises:
            IntegrityError: It can't be read.
        """
        sequences = self._sequences()
        return self._read(sequences[-1]) if sequences else None

    def entries(self) -> list[LedgerEntry]:
        """Return all entries, oldest first.

        Raises:
            IntegrityError: One can't be read.
        """
        return [self._read(sequence) for sequence in self._sequences()]

    def verify(self) -> list[LedgerEntry]:
        """Walk the chain and return all entries, oldest first.

        The digest of the newest entry is in no other entry; the registry keeps it as a tag of the version.

        Raises:
            IntegrityError: An entry is missing, changed or out of place; the message names its sequence number.
        """
        previous: LedgerEntry | None = None
        entries = self.entries()
        for position, entry in enumerate(entries, start=1):
            where = f"ledger of {self._model}, entry {position}"
            if entry.sequence != position:
                raise IntegrityError(f"{where} is missing; restore it from a backup before anything is promoted")
            if entry.previous_sha256 != (previous.digest if previous else None):
                raise IntegrityError(f"{where} does not follow from the entry before; one of them was changed")
            previous = entry
        return entries

    def append(
        self,
        head: LedgerEntry | None,
        *,
        artifact: Artifact,
        decision_sha256: str,
        run_id: str,
        approval: Approval,
        registered_version: int,
    ) -> LedgerEntry:
        """Write the entry that follows ``head``, the newest one when the promotion was decided.

        Raises:
            Conflict: Another promotion was written since.
        """
        entry = LedgerEntry(
            sequence=head.sequence + 1 if head else 1,
            previous_sha256=head.digest if head else None,
            artifact=artifact,
            decision_sha256=decision_sha256,
            run_id=run_id,
            approval=approval,
            registered_version=registered_version,
            at=datetime.now(UTC),
        )
        try:
            self._store.put_if(self._key(entry.sequence), pretty_json(entry), version=None)
        except Conflict:
            raise Conflict(
                f"ledger of {self._model}: another promotion was first (entry {entry.sequence}); "
                "run again, to be compared with the new champion"
            ) from None
        return entry

    def _sequences(self) -> list[int]:
        names = (key.rpartition("/")[2] for key in self._store.keys(f"ledger/{self._model}/"))
        return [int(name[:8]) for name in names if _ENTRY_NAME.fullmatch(name)]

    def _key(self, sequence: int) -> str:
        return f"ledger/{self._model}/{sequence:08d}.json"

    def _read(self, sequence: int) -> LedgerEntry:
        data = self._store.get(self._key(sequence))
        try:
            entry = LedgerEntry.model_validate_json(data)
        except ValidationError:
            raise IntegrityError(
                f"ledger of {self._model}, entry {sequence} is damaged; restore it from a backup"
            ) from None
        if entry.sequence != sequence:
            raise IntegrityError(f"ledger of {self._model}, entry {sequence} claims to be entry {entry.sequence}")
        return entry
