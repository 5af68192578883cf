"""The ledger: one winner per entry, and no change that goes unseen."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.contract import Artifact, Conflict, IntegrityError
from stillhouse.promotion import Approval, Ledger, LedgerEntry
from stillhouse.store import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture
def ledger(store: FileStore) -> Ledger:
    return Ledger(store, "toy")


def append(ledger: Ledger, head: LedgerEntry | None, number: int) -> LedgerEntry:
    digest = f"{number:064x}"
    return ledger.append(
        head,
        artifact=Artifact(uri=f"file:///store/m{number}", sha256=digest, num_bytes=1, kind="tree"),
        decision_sha256=digest,
        run_id=f"run-{number}",
        approval=Approval(mode="human", who="ada", when=datetime(2026, 11, 24, tzinfo=UTC), decision_sha256=digest),
        registered_version=number,
    )


def fill(ledger: Ledger, count: int) -> list[LedgerEntry]:
    entries: list[LedgerEntry] = []
    for number in range(1, count + 1):
        entries.append(append(ledger, entries[-1] if entries else None, number))
    return entries


def test_entries_follow_each_other(ledger: Ledger, store: FileStore) -> None:
    assert ledger.head() is None
    assert ledger.verify() == []
    entries = fill(ledger, 3)
    assert ledger.head() == entries[-1]
    assert ledger.verify() == ledger.entries() == entries
    assert [entry.previous_sha256 for entry in entries] == [None, entries[0].digest, entries[1].digest]
    assert store.keys("ledger/") == [f"ledger/toy/0000000{n}.json" for n in (1, 2, 3)]


def test_models_have_ledgers_of_their_own(ledger: Ledger, store: FileStore) -> None:
    fill(ledger, 2)
    assert Ledger(store, "other").head() is None
    assert Ledger(store, "to").head() is None


def test_of_sixteen_racing_promotions_one_wins(ledger: Ledger, store: FileStore) -> None:
    head = append(ledger, None, 1)
    barrier = threading.Barrier(16)

    def race(number: int) -> int | None:
        barrier.wait()
        try:
            append(Ledger(store, "toy"), head, number)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(race, range(2, 18)) if number]
    assert len(winners) == 1
    assert [entry.registered_version for entry in ledger.verify()] == [1, *winners]


def test_a_promotion_decided_on_an_old_head_is_refused(ledger: Ledger) -> None:
    first, second = fill(ledger, 2)
    for old in (None, first):
        with pytest.raises(Conflict, match="another promotion was first"):
            append(ledger, old, 3)
    assert ledger.head() == second


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(1, 3), field=st.sampled_from(["run_id", "decision_sha256", "at", "registered_version"]))
def test_any_change_of_an_entry_is_seen_and_named(
    tmp_path_factory: pytest.TempPathFactory, position: int, field: str
) -> None:
    store = FileStore(tmp_path_factory.mktemp("ledger"))
    ledger = Ledger(store, "toy")
    fill(ledger, 4)
    key = f"ledger/toy/0000000{position}.json"
    changed = {"run_id": "x", "decision_sha256": "f" * 64, "at": "2020-01-01T00:00:00Z", "registered_version": 99}
    store.put(key, json.dumps(json.loads(store.get(key)) | {field: changed[field]}).encode())
    with pytest.raises(IntegrityError, match=f"entry {position + 1} does not follow"):
        ledger.verify()


def test_a_missing_entry_is_named(ledger: Ledger, store: FileStore) -> None:
    fill(ledger, 3)
    store.delete("ledger/toy/00000002.json")
    with pytest.raises(IntegrityError, match="entry 2 is missing"):
        ledger.verify()


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b"\xff"])
def test_a_damaged_entry_is_named(ledger: Ledger, store: FileStore, data: bytes) -> None:
    fill(ledger, 2)
    store.put("ledger/toy/00000002.json", data)
    with pytest.raises(IntegrityError, match="entry 2 is damaged"):
        ledger.verify()
    with pytest.raises(IntegrityError, match="entry 2 is damaged"):
        ledger.head()


def test_an_entry_copied_elsewhere_is_seen(ledger: Ledger, store: FileStore) -> None:
    fill(ledger, 2)
    store.put("ledger/toy/00000003.json", store.get("ledger/toy/00000001.json"))
    with pytest.raises(IntegrityError, match="entry 3 claims to be entry 1"):
        ledger.head()
