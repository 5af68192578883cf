"""Reconciliation says what differs, finishes what was left half done, and moves nothing on doubtful ground."""

import json
from pathlib import Path
from typing import Any

import pytest
from promotions import Countdown, FileRegistry, Killed, Mortal, approved

from stillhouse.contract import ExitCode, IntegrityError
from stillhouse.promotion import Ledger
from stillhouse.promotion.promote import promote_model
from stillhouse.promotion.reconcile import ReconcileReport, reconcile
from stillhouse.store import FileStore


class House:
    """Two promotions, and one that ended with its ledger entry if asked for."""

    def __init__(self, folder: Path, promotions: tuple[str, ...] = ("m1", "m2")) -> None:
        self.store = FileStore(folder)
        self.registry = FileRegistry(folder)
        self.ledger = Ledger(self.store, "toy")
        for name in promotions:
            self.promote(name)

    def register(self, name: str) -> int:
        return self.registry.register("toy", Path(), approved("toy", name, self.ledger).artifact, {}, mlflow_run_id="0")

    def promote(self, name: str, registry: Any = None) -> None:
        promote_model(approved("toy", name, self.ledger), ledger=self.ledger, registry=registry or self.registry)

    def leave_half_done(self) -> None:
        class DiesAfterTheLedger(FileRegistry):
            def set_tags(self, *args: Any) -> None:
                raise Killed

        with pytest.raises(Killed):
            self.promote("m3", DiesAfterTheLedger(self.store.folder))
        assert self.ledger.verify().open is not None

    def reconcile(self, *, repair: bool = True) -> ReconcileReport:
        return reconcile("toy", ledger=self.ledger, registry=self.registry, repair=repair)

    def found(self, *, repair: bool = True) -> list[tuple[str, bool]]:
        return [(finding.kind, finding.repaired) for finding in self.reconcile(repair=repair).findings]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_what_agrees_is_left_alone(house: House) -> None:
    report = house.reconcile()
    assert (report.status, report.champion, report.ledger_entries, report.findings) == ("consistent", 2, 4, ())
    assert report.exit_code == ExitCode.OK
    assert ReconcileReport.model_validate_json(report.model_dump_json()) == report


def test_it_writes_nothing_where_nothing_is_wrong(house: House) -> None:
    calls: list[str] = []

    class Watched(Mortal):
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return super().__getattr__(name)

    ledger = Ledger(Watched(house.store, Countdown(None)), "toy")
    reconcile("toy", ledger=ledger, registry=Watched(house.registry, Countdown(None)), repair=True)
    assert set(calls) == {"keys", "get", "aliases", "tags", "find"}


def test_a_model_that_was_never_promoted_is_consistent(tmp_path: Path) -> None:
    registry = FileRegistry(tmp_path)
    report = reconcile("toy", ledger=Ledger(FileStore(tmp_path), "toy"), registry=registry, repair=True)
    assert (report.status, report.champion) == ("consistent", None)


def test_a_half_done_promotion_is_finished(house: House) -> None:
    house.leave_half_done()
    report = house.reconcile(repair=False)
    assert [(finding.kind, finding.repaired) for finding in report.findings] == [("half-done", False)]
    assert (report.status, report.exit_code) == ("inconsistent", ExitCode.DATA)
    assert house.registry.aliases("toy")["champion"] == 2
    report = house.reconcile()
    assert (report.status, report.exit_code, report.champion) == ("repaired", ExitCode.OK, 3)
    assert "it was finished" in report.findings[0].detail
    assert house.registry.aliases("toy")["previous"] == 2
    assert house.reconcile().status == "consistent"


@pytest.mark.parametrize("harm", ["break_version", "delete_version"])
def test_a_half_done_promotion_of_a_bad_model_is_annulled(house: House, harm: str) -> None:
    house.leave_half_done()
    house.registry.set_alias("toy", "champion", 3)
    getattr(house.registry, harm)("toy", 3)
    report = house.reconcile()
    assert (report.status, report.champion) == ("repaired", 2)
    assert "it was annulled" in report.findings[0].detail
    assert house.registry.aliases("toy")["previous"] == 1
    assert house.ledger.verify().outcomes[5].status == "failed"
    assert house.reconcile().status == "consistent"


def test_an_annulled_first_promotion_leaves_no_champion(tmp_path: Path) -> None:
    house = House(tmp_path, promotions=())
    house.leave_half_done()
    house.registry.set_alias("toy", "champion", 1)
    house.registry.break_version("toy", 1)
    report = house.reconcile()
    assert (report.status, report.champion) == ("repaired", None)


def test_a_champion_from_before_the_ledger_becomes_previous(tmp_path: Path) -> None:
    house = House(tmp_path, promotions=())
    house.registry.set_alias("toy", "champion", house.register("old"))
    assert house.reconcile().status == "consistent"
    house.promote("m1")
    assert house.registry.aliases("toy") == {"candidate": 2, "champion": 2, "previous": 1}
    entry = house.ledger.head()
    assert entry is not None
    assert entry.champion_before == house.ledger.verify().unrecorded == 1
    assert house.reconcile().status == "consistent"
    house.registry.delete_version("toy", 1)
    assert house.reconcile().status == "consistent"


def test_a_champion_from_before_the_ledger_comes_back_if_the_first_promotion_is_annulled(tmp_path: Path) -> None:
    house = House(tmp_path, promotions=())
    house.registry.set_alias("toy", "champion", house.register("old"))
    house.leave_half_done()
    house.registry.set_alias("toy", "champion", 2)
    house.registry.break_version("toy", 2)
    report = house.reconcile()
    assert (report.status, report.champion) == ("repaired", 1)
    assert house.reconcile().status == "consistent"


def test_a_champion_moved_by_hand_is_reported_and_left(house: House) -> None:
    house.registry.set_alias("toy", "champion", 1)
    report = house.reconcile()
    assert (report.status, report.exit_code, report.champion) == ("inconsistent", ExitCode.DATA, 1)
    (finding,) = report.findings
    assert finding.kind == "champion-moved"
    assert "leads to version 1, and by the ledger it leads to version 2" in finding.detail


def test_a_champion_removed_by_hand_is_reported(house: House) -> None:
    house.registry.delete_alias("toy", "champion")
    assert house.found() == [("champion-moved", False)]


def test_a_moved_previous_is_put_right(house: House) -> None:
    house.registry.set_alias("toy", "previous", 2)
    assert house.found(repair=False) == [("previous-moved", False)]
    assert house.found() == [("previous-moved", True)]
    assert house.registry.aliases("toy")["previous"] == 1
    assert house.reconcile().status == "consistent"


def test_a_champion_that_is_gone_is_reported_with_the_way_back(house: House) -> None:
    house.registry.delete_version("toy", 2)
    report = house.reconcile()
    assert (report.status, report.exit_code) == ("inconsistent", ExitCode.DATA)
    (finding,) = report.findings
    assert finding.kind == "version-gone"
    assert "clear the task promote of run run-m2" in finding.detail
    house.promote("m2")  # what that does
    assert house.reconcile().status == "consistent"


def change(house: House) -> None:
    key = "ledger/toy/00000001.json"
    house.store.put(key, json.dumps(json.loads(house.store.get(key)) | {"run_id": "x"}).encode())


def lose_the_middle(house: House) -> None:
    house.store.delete("ledger/toy/00000002.json")


def cut_the_end_off(house: House) -> None:
    for number in (3, 4):
        house.store.delete(f"ledger/toy/0000000{number}.json")


def lose_everything(house: House) -> None:
    for key in house.store.keys("ledger/"):
        house.store.delete(key)


def write_another_history(house: House) -> None:
    lose_everything(house)
    for name in ("m1", "m4"):
        promote_model(
            approved("toy", name, house.ledger),
            ledger=house.ledger,
            registry=FileRegistry(house.store.folder / "elsewhere"),
        )


@pytest.mark.parametrize("harm", [change, lose_the_middle, cut_the_end_off, lose_everything, write_another_history])
def test_a_damaged_ledger_is_said_and_nothing_is_moved(house: House, harm: Any) -> None:
    harm(house)
    house.registry.set_alias("toy", "previous", 2)
    aliases, keys = house.registry.aliases("toy"), house.store.keys("ledger/")
    report = house.reconcile()
    assert (report.status, report.exit_code) == ("damaged", ExitCode.DATA)
    assert [(finding.kind, finding.repaired) for finding in report.findings] == [("ledger-damaged", False)]
    assert house.registry.aliases("toy") == aliases
    assert house.store.keys("ledger/") == keys


def test_a_damaged_ledger_with_a_half_done_promotion_is_left_half_done(house: House) -> None:
    house.leave_half_done()
    change(house)
    assert house.reconcile().status == "damaged"
    with pytest.raises(IntegrityError, match="entry 2 does not follow"):
        house.ledger.verify()


def test_a_promotion_that_ends_meanwhile_is_no_finding(house: House) -> None:
    """Between the ledger and the aliases somebody promotes: what was read first no longer counts."""

    class Overtaken(FileRegistry):
        overtaken = False

        def find(self, model: str, sha256: str) -> int | None:
            if not self.overtaken:
                self.overtaken = True
                house.promote("m3")
            return super().find(model, sha256)

    report = reconcile("toy", ledger=house.ledger, registry=Overtaken(house.store.folder), repair=True)
    assert (report.status, report.champion) == ("consistent", 3)
