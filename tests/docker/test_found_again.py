"""A container outlives the worker that started it, and is found by the next try."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from docker_tasks import House

from stillhouse.orchestration import docker_engine
from stillhouse.orchestration.containers import Ended

pytestmark = pytest.mark.docker

WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from docker import APIClient
from docker_tasks import DockerRuntime, House
runtime = DockerRuntime.model_validate_json({runtime!r})
house = House(engine=APIClient(base_url=runtime.url, version="auto"), runtime=runtime, work=Path(), name={name!r})
operator = house.operator()
operator.log.on_line = lambda line: print(line, flush=True)
house.run(house.task("hold"), operator)
"""


def creations(house: House, since: float) -> int:
    """Return how many containers of this name were created."""
    filters = {"event": "create", "label": f"stillhouse.task={house.name}"}
    return len(list(house.engine.events(since=int(since), until=int(time.time()) + 1, filters=filters, decode=True)))


def follow_to_the_end(house: House, operator: Any, task: Any) -> Ended:
    """Run a second try up to its first output, then let the task end."""
    with ThreadPoolExecutor() as pool:
        running = pool.submit(house.run, task, operator)
        operator.log.wait_for("found container")
        operator.log.wait_for("count")
        house.let_go()
        return running.result()


def test_next_try_follows_what_a_killed_worker_started(house: House) -> None:
    since = time.time()
    code = WORKER.format(tests=str(Path(__file__).parents[1]), runtime=house.runtime.model_dump_json(), name=house.name)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ) as worker:
        assert worker.stdout is not None
        assert any(line.startswith("count") for line in worker.stdout)
        worker.kill()
    (left,) = house.containers()
    assert house.engine.inspect_container(left)["State"]["Running"]

    operator = house.operator()
    ended = follow_to_the_end(house, operator, house.task("hold"))

    assert ended == Ended(exit_code=0, last_line="done")
    counts = [int(line.split()[1]) for line in operator.log.lines if line.startswith("count")]
    assert counts == list(range(counts[0], counts[-1] + 1)), "every line once, without a gap"
    assert creations(house, since) == 1
    assert house.containers() == []


@pytest.mark.parametrize("code", [0, 65])
def test_end_that_nobody_read_is_read(house: House, code: int) -> None:
    since = time.time()
    house.engine.wait(house.leave_behind(house.task("end", str(code))))
    operator = house.operator()

    assert house.run(house.task("end", str(code)), operator) == Ended(exit_code=code, last_line="last words")

    assert len([line for line in operator.log.lines if line.startswith("line ")]) < 100, "only its last lines"
    assert creations(house, since) == 1
    assert house.containers() == []


@pytest.mark.parametrize("code", [75, 137])
def test_end_that_another_try_can_help_is_followed_by_one(house: House, code: int) -> None:
    since = time.time()
    house.engine.wait(house.leave_behind(house.task("end-at-first", str(code))))

    assert house.run(house.task("end-at-first", str(code))) == Ended(exit_code=0, last_line="second")
    assert creations(house, since) == 2


def test_container_that_ran_out_of_memory_is_not_started_again(house: House) -> None:
    since = time.time()
    house.engine.wait(house.leave_behind(house.task("eat", memory_gib=0.1)))

    assert house.run(house.task("eat", memory_gib=0.1)).out_of_memory
    assert creations(house, since) == 1


def test_container_that_was_never_started_is(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = house.operator()
    monkeypatch.setattr(operator, "_start", lambda container: None)
    operator._connect(house.runtime.url)
    operator._open(house.task("end", "0"), house.deployment(), {})

    assert house.run(house.task("end", "0")).exit_code == 0


def test_two_workers_at_once_share_one_container(house: House) -> None:
    since = time.time()
    operators = [house.operator(), house.operator()]
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(house.run, house.task("hold"), operator) for operator in operators]
        for operator in operators:
            operator.log.wait_for("count")
        house.let_go()
        codes = {future.result().exit_code for future in running}
    # The slower one may find the container removed by the faster one.
    assert codes in ({0}, {0, 137})
    assert creations(house, since) == 1


def test_lost_connection_costs_no_line(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = house.operator()
    operator._connect(house.runtime.url)
    ask = operator.cli.logs
    asked = 0

    def broken(*args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        asked += 1
        for number, frame in enumerate(ask(*args, **kwargs)):
            if asked < 4 and number == 20:
                return
            yield frame

    monkeypatch.setattr(operator.cli, "logs", broken)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(house.run, house.task("hold"), operator)
        operator.log.wait_for("count 70")
        house.let_go()
        assert running.result().exit_code == 0
    counts = [int(line.split()[1]) for line in operator.log.lines if line.startswith("count")]
    assert asked >= 4
    assert counts == list(range(1, len(counts) + 1))


def test_end_is_seen_although_the_output_never_ends(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "WATCH_SECONDS", 0.3)
    silent = house.engine.create_container(
        house.runtime.image, ["600"], entrypoint=["sleep"], labels={"stillhouse.task": house.name}
    )["Id"]
    house.engine.start(silent)
    operator = house.operator()
    operator._connect(house.runtime.url)
    ask = operator.cli.logs
    monkeypatch.setattr(operator.cli, "logs", lambda container, **options: ask(silent, **options))

    assert house.run(house.task("end", "65"), operator).exit_code == 65
