"""Promoters and rollbacks at the same moment: one winner, the others are told, nothing is lost."""

import multiprocessing
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import pytest
from promotions import FileRegistry, approved
from servers import ACCESS_KEY, SECRET_KEY, create_bucket, s3_server

from stillhouse.contract import Conflict, Promotion
from stillhouse.promotion import Ledger
from stillhouse.promotion.promote import promote_model
from stillhouse.promotion.reconcile import reconcile
from stillhouse.promotion.rollback import roll_back
from stillhouse.store import ObjectStore, open_store

RACES = 100
"""Of threads, and as many of processes, on each kind of store."""
RACES_PER_LEDGER = 5


def promote(store: ObjectStore, registry: FileRegistry, model: str, name: str, barrier: Any) -> Promotion | None:
    """Promote as the others do, all on the ground of the same champion; return None if another one won."""
    ledger = Ledger(store, model)
    request = approved(model, name, ledger)
    barrier.wait()
    try:
        return promote_model(request, ledger=ledger, registry=registry)
    except Conflict:
        return None
    finally:
        barrier.wait()  # so that nobody reads the next race's champion before this race has ended


def check_race(store: ObjectStore, registry: FileRegistry, model: str, position: int, winners: list[str]) -> None:
    history = Ledger(store, model).verify()
    assert len(winners) == 1, f"winners of race {position} for {model}: {winners}"
    assert len(history.entries) == 2 * position
    assert [outcome.status for outcome in history.outcomes.values()] == ["done"] * position
    assert history.head is not None
    assert history.head.run_id == f"run-{winners[0]}"
    wanted = {"champion": registry.find(model, history.head.artifact.sha256)}
    if history.previous is not None:
        wanted["previous"] = registry.find(model, history.previous.artifact.sha256)
    found = registry.aliases(model)
    assert {alias: found.get(alias) for alias in ("champion", "previous") if alias in found} == wanted


def run_threads(root: str, folder: Path, *, promoters: int, races: int) -> None:
    store, registry = open_store(root), FileRegistry(folder)
    barrier = threading.Barrier(promoters)
    with ThreadPoolExecutor(promoters) as pool:
        for race in range(races):
            model = f"toy-{race // RACES_PER_LEDGER}"
            names = [f"{race}-{promoter}" for promoter in range(promoters)]
            won = pool.map(lambda name, model=model: promote(store, registry, model, name, barrier), names)
            winners = [name for name, promotion in zip(names, won, strict=True) if promotion]
            check_race(store, registry, model, race % RACES_PER_LEDGER + 1, winners)


def promoter_process(root: str, folder: Path, me: int, races: int, barrier: Any, results: Any) -> None:
    store, registry = open_store(root), FileRegistry(folder)
    results.put(
        [
            race
            for race in range(races)
            if promote(store, registry, f"toy-{race // RACES_PER_LEDGER}", f"{race}-{me}", barrier)
        ]
    )


def run_processes(root: str, folder: Path, *, promoters: int, races: int) -> None:
    context: SpawnContext = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(promoters), context.Queue()
    processes = [
        context.Process(target=promoter_process, args=(root, folder, me, races, barrier, results))
        for me in range(promoters)
    ]
    for process in processes:
        process.start()
    won = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * promoters
    assert sorted(race for races_won in won for race in races_won) == list(range(races))
    store, registry = open_store(root), FileRegistry(folder)
    for number in range(races // RACES_PER_LEDGER):
        history = Ledger(store, f"toy-{number}").verify()
        assert [outcome.status for outcome in history.outcomes.values()] == ["done"] * RACES_PER_LEDGER
        assert len(history.entries) == 2 * RACES_PER_LEDGER
        assert history.head is not None
        champion = registry.find(f"toy-{number}", history.head.artifact.sha256)
        assert registry.aliases(f"toy-{number}")["champion"] == champion


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": server.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        create_bucket(server.url, "store")
        yield f"s3://store/{uuid.uuid4().hex}"


def test_of_racing_threads_one_wins_each_time(tmp_path: Path) -> None:
    run_threads(f"file://{tmp_path / 'store'}", tmp_path, promoters=4, races=40)


@pytest.mark.slow
def test_races_of_threads_on_one_machine(tmp_path: Path) -> None:
    run_threads(f"file://{tmp_path / 'store'}", tmp_path, promoters=8, races=RACES)


@pytest.mark.slow
def test_races_of_processes_on_one_machine(tmp_path: Path) -> None:
    run_processes(f"file://{tmp_path / 'store'}", tmp_path, promoters=4, races=RACES)


@pytest.mark.slow
def test_races_of_threads_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    run_threads(f"{bucket}/threads", tmp_path, promoters=4, races=RACES)


@pytest.mark.slow
def test_races_of_processes_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    run_processes(f"{bucket}/processes", tmp_path, promoters=3, races=RACES)


def test_promotions_rollbacks_and_reconciliations_never_mix(tmp_path: Path) -> None:
    store, registry = open_store(f"file://{tmp_path / 'store'}"), FileRegistry(tmp_path)
    workers = 6
    barrier = threading.Barrier(workers)

    def work(race: int, me: int) -> bool:
        ledger = Ledger(store, "toy")
        request = approved("toy", f"{race}-{me}", ledger)
        barrier.wait()
        try:
            if me == 0:
                reconcile("toy", ledger=ledger, registry=registry, repair=True)
                return False
            if me == 1:
                roll_back("toy", ledger=ledger, registry=registry, target=1, reason=f"race {race}", who="ada")
            else:
                promote_model(request, ledger=ledger, registry=registry)
        except Conflict:
            return False
        return True

    for name in ("first", "second"):
        promote_model(approved("toy", name, Ledger(store, "toy")), ledger=Ledger(store, "toy"), registry=registry)
    with ThreadPoolExecutor(workers) as pool:
        for race in range(15):
            before = Ledger(store, "toy").verify()
            if before.head is not None and registry.aliases("toy")["champion"] == 1:
                promote_model(
                    approved("toy", f"{race}-again", Ledger(store, "toy")),
                    ledger=Ledger(store, "toy"),
                    registry=registry,
                )
                before = Ledger(store, "toy").verify()
            done = list(pool.map(work, [race] * workers, range(workers)))
            after = Ledger(store, "toy").verify()
            assert after.entries[: len(before.entries)] == before.entries
            # A promotion may win, then the rollback, which is not decided on the ground of one champion.
            assert 1 <= sum(done) <= len(after.actions) - len(before.actions) <= 2
            assert after.open is None
            assert reconcile("toy", ledger=Ledger(store, "toy"), registry=registry, repair=False).status == "consistent"


def test_a_promoter_that_was_overtaken_puts_right_what_it_moved(tmp_path: Path) -> None:
    """It sleeps before it moves ``champion``; meanwhile another one finishes its promotion, and promotes the next."""
    store, registry = open_store(f"file://{tmp_path / 'store'}"), FileRegistry(tmp_path)
    ledger = Ledger(store, "toy")
    awake: list[int] = []

    class Sleepy(FileRegistry):
        def set_alias(self, model: str, alias: str, version: int) -> None:
            if alias == "champion" and not awake:
                awake.append(version)
                reconcile("toy", ledger=ledger, registry=registry, repair=True)
                promote_model(approved("toy", "second", ledger), ledger=ledger, registry=registry)
            super().set_alias(model, alias, version)

    with pytest.raises(Conflict, match="entry 1 no longer counts"):
        promote_model(approved("toy", "first", ledger), ledger=ledger, registry=Sleepy(tmp_path))
    assert awake == [1]
    assert registry.aliases("toy") == {"candidate": 2, "champion": 2, "previous": 1}
    assert reconcile("toy", ledger=ledger, registry=registry, repair=False).status == "consistent"
