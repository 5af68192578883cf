"""The ledger: one winner per entry, and no change that goes unseen."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stillhouse.contract import Artifact, Conflict, IntegrityError, canonical_json, pretty_json, sha256_of
from stillhouse.promotion import Approval, Ledger
from stillhouse.promotion.ledger import OutcomeEntry, PromotionEntry, RollbackEntry, same_person
from stillhouse.store import FileStore


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture
def ledger(store: FileStore) -> Ledger:
    return Ledger(store, "toy")


def model(number: int) -> Artifact:
    return Artifact(uri=f"file:///store/m{number}", sha256=f"{number:064x}", num_bytes=1, kind="tree")


def promote(ledger: Ledger, number: int, *, failure: str = "", concluded: bool = True) -> PromotionEntry:
    artifact = model(number)
    entry = ledger.append_promotion(
        ledger.verify(),
        artifact=artifact,
        registered_version=number,
        champion_before=None,
        decision_sha256=artifact.sha256,
        run_id=f"run-{number}",
        approval=Approval(
            mode="human", who="ada", when=datetime(2026, 11, 24, tzinfo=UTC), decision_sha256=artifact.sha256
        ),
    )
    if concluded:
        ledger.append_outcome(entry, failure=failure, aliases={"champion": number})
    return entry


def roll_back(ledger: Ledger, number: int) -> RollbackEntry:
    entry = ledger.append_rollback(
        ledger.verify(),
        artifact=model(number),
        registered_version=number,
        champion_before=None,
        reason="wrong on Mondays",
        who="bob",
        asked_version=None,
    )
    ledger.append_outcome(entry)
    return entry


def test_actions_and_outcomes_follow_each_other(ledger: Ledger, store: FileStore) -> None:
    assert ledger.head() is None
    assert ledger.verify().entries == ()
    first, second = promote(ledger, 1), promote(ledger, 2)
    history = ledger.verify()
    assert ledger.head() == history.head == second
    assert (history.previous, history.open) == (first, None)
    assert history.actions == [first, second]
    assert [entry.action for entry in history.entries] == ["promote", "outcome"] * 2
    assert [entry.previous_sha256 for entry in history.entries] == [
        None,
        *(entry.digest for entry in history.entries[:-1]),
    ]
    assert history.outcomes[3].aliases == {"champion": 2}
    assert store.keys("ledger/") == [f"ledger/toy/0000000{n}.json" for n in (1, 2, 3, 4)]


def test_a_digest_can_be_computed_from_the_stored_json(ledger: Ledger, store: FileStore) -> None:
    promote(ledger, 1)
    stored = json.loads(store.get("ledger/toy/00000001.json"))
    assert ledger.verify().entries[1].previous_sha256 == sha256_of(canonical_json(stored))


def test_a_rollback_makes_the_old_model_champion_and_the_new_one_previous(ledger: Ledger) -> None:
    first, second = promote(ledger, 1), promote(ledger, 2)
    back = roll_back(ledger, 1)
    history = ledger.verify()
    assert history.head == ledger.head() == back
    assert history.head.artifact == first.artifact
    assert history.previous == second


def test_the_action_at_work_is_champion_until_it_fails(ledger: Ledger) -> None:
    first = promote(ledger, 1)
    second = promote(ledger, 2, concluded=False)
    history = ledger.verify()
    assert history.open == history.head == ledger.head() == second
    ledger.append_outcome(second, failure="does not load")
    history = ledger.verify()
    assert (history.open, history.head, ledger.head()) == (None, first, first)
    assert history.actions == [first]
    third = promote(ledger, 3, failure="does not load either")
    assert ledger.head() == ledger.verify().head == first
    assert ledger.verify().outcomes[third.sequence].detail == "does not load either"


def test_without_any_action_that_stands_there_is_no_champion(ledger: Ledger) -> None:
    promote(ledger, 1, failure="no")
    assert ledger.head() is None
    assert ledger.verify().head is None


def test_no_action_begins_before_the_last_one_has_ended(ledger: Ledger) -> None:
    promote(ledger, 1, concluded=False)
    with pytest.raises(Conflict, match="entry 1 has no outcome yet"):
        promote(ledger, 2)
    with pytest.raises(Conflict, match="entry 1 has no outcome yet"):
        roll_back(ledger, 2)


def test_the_first_outcome_counts(ledger: Ledger) -> None:
    entry = promote(ledger, 1)
    again = ledger.append_outcome(entry, failure="too late")
    assert again.status == "done"
    assert len(ledger.verify().entries) == 2


def test_of_racing_outcomes_one_is_written(ledger: Ledger, store: FileStore) -> None:
    entry = promote(ledger, 1, concluded=False)
    barrier = threading.Barrier(8)

    def race(number: int) -> OutcomeEntry:
        barrier.wait()
        return Ledger(store, "toy").append_outcome(entry, failure=f"by {number}" if number % 2 else "")

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(8)))
    assert len(ledger.verify().entries) == 2
    assert all(outcome == ledger.verify().entries[1] for outcome in outcomes)


def test_an_outcome_of_an_unknown_action_is_refused(ledger: Ledger, store: FileStore, tmp_path: Path) -> None:
    stranger = promote(Ledger(store, "other"), 1, concluded=False)
    promote(ledger, 1, concluded=False)
    with pytest.raises(IntegrityError, match="no longer what was written"):
        ledger.append_outcome(stranger)


def test_models_have_ledgers_of_their_own(ledger: Ledger, store: FileStore) -> None:
    promote(ledger, 1)
    assert Ledger(store, "other").head() is None
    assert Ledger(store, "to").head() is None


def test_of_sixteen_racing_promotions_one_wins(ledger: Ledger, store: FileStore) -> None:
    promote(ledger, 1)
    barrier = threading.Barrier(16)

    def race(number: int) -> int | None:
        barrier.wait()
        try:
            promote(Ledger(store, "toy"), number, concluded=False)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(race, range(2, 18)) if number]
    assert len(winners) == 1
    assert [entry.registered_version for entry in ledger.verify().actions] == [1, *winners]


def test_an_action_decided_on_an_old_ledger_is_refused(ledger: Ledger) -> None:
    old = [ledger.verify()]
    for number in (1, 2):
        promote(ledger, number)
        old.append(ledger.verify())
    kept = ledger.verify()
    for history in old[:-1]:
        with pytest.raises(Conflict, match="another promotion or rollback was first"):
            ledger.append_rollback(
                history,
                artifact=model(1),
                registered_version=1,
                champion_before=2,
                reason="late",
                who="bob",
                asked_version=None,
            )
    assert ledger.verify() == kept


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.sampled_from([1, 3]), field=st.sampled_from(["run_id", "decision_sha256", "at", "champion_before"]))
def test_any_change_of_an_entry_is_seen_and_named(
    tmp_path_factory: pytest.TempPathFactory, position: int, field: str
) -> None:
    store = FileStore(tmp_path_factory.mktemp("ledger"))
    ledger = Ledger(store, "toy")
    promote(ledger, 1)
    promote(ledger, 2)
    key = f"ledger/toy/0000000{position}.json"
    changed = {"run_id": "x", "decision_sha256": "f" * 64, "at": "2020-01-01T00:00:00Z", "champion_before": 99}
    store.put(key, json.dumps(json.loads(store.get(key)) | {field: changed[field]}).encode())
    with pytest.raises(IntegrityError, match=f"entry {position + 1} does not follow"):
        ledger.verify()


def test_a_changed_outcome_is_seen_by_what_follows(ledger: Ledger, store: FileStore) -> None:
    promote(ledger, 1)
    promote(ledger, 2)
    key = "ledger/toy/00000002.json"
    store.put(key, json.dumps(json.loads(store.get(key)) | {"status": "failed"}).encode())
    with pytest.raises(IntegrityError, match="entry 3 does not follow"):
        ledger.verify()


def test_a_missing_entry_is_named(ledger: Ledger, store: FileStore) -> None:
    promote(ledger, 1)
    promote(ledger, 2)
    store.delete("ledger/toy/00000002.json")
    with pytest.raises(IntegrityError, match="entry 2 is missing"):
        ledger.verify()


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b"\xff"])
def test_a_damaged_entry_is_named(ledger: Ledger, store: FileStore, data: bytes) -> None:
    promote(ledger, 1)
    store.put("ledger/toy/00000002.json", data)
    for read in (ledger.verify, ledger.head):
        with pytest.raises(IntegrityError, match="entry 2 is damaged"):
            read()


def test_an_entry_copied_elsewhere_is_seen(ledger: Ledger, store: FileStore) -> None:
    promote(ledger, 1)
    store.put("ledger/toy/00000003.json", store.get("ledger/toy/00000001.json"))
    with pytest.raises(IntegrityError, match="entry 3 claims to be entry 1"):
        ledger.head()


def test_two_actions_in_a_row_are_seen_though_their_digests_fit(ledger: Ledger, store: FileStore) -> None:
    entry = promote(ledger, 1, concluded=False)
    forged = entry.model_copy(update={"sequence": 2, "previous_sha256": entry.digest})
    store.put("ledger/toy/00000002.json", pretty_json(forged))
    with pytest.raises(IntegrityError, match="entry 2 is out of place"):
        ledger.verify()


def test_an_entry_of_another_format_is_refused_by_name(ledger: Ledger, store: FileStore) -> None:
    entry = promote(ledger, 1).model_dump(mode="json") | {"schema_id": "stillhouse/ledger-entry/1"}
    store.put("ledger/toy/00000001.json", pretty_json(entry))
    with pytest.raises(IntegrityError, match=r"entry 1 is of format stillhouse/ledger-entry/1.*promote again"):
        ledger.verify()


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_rollback_without_a_reason_can_not_be_written(ledger: Ledger, reason: str) -> None:
    promote(ledger, 1)
    entry = roll_back(ledger, 1).model_dump() | {"reason": reason}
    with pytest.raises(ValidationError, match="reason"):
        RollbackEntry.model_validate(entry)


def test_a_person_is_known_by_name_whatever_its_case() -> None:
    assert same_person("Ada ", "ada")
    assert not same_person("ada", "bob")
    assert not same_person("ada", None)


def test_teachers_are_in_the_chain_and_entries_without_them_keep_their_digest(ledger: Ledger, store: FileStore) -> None:
    promote(ledger, 1)
    artifact = model(2)
    entry = ledger.append_promotion(
        ledger.verify(),
        artifact=artifact,
        registered_version=2,
        champion_before=1,
        decision_sha256=artifact.sha256,
        run_id="run-2",
        approval=Approval(
            mode="auto", who="toy", when=datetime(2026, 11, 24, tzinfo=UTC), decision_sha256=artifact.sha256
        ),
        teachers=("gpt-4o at api.openai.com",),
    )
    first, _, second = ledger.verify().entries
    assert second == entry
    assert b"teachers" not in store.get("ledger/toy/00000001.json")
    assert first.digest == sha256_of(canonical_json(json.loads(store.get("ledger/toy/00000001.json"))))
    assert json.loads(store.get("ledger/toy/00000003.json"))["teachers"] == ["gpt-4o at api.openai.com"]
