"""How a container task runs, ends and is stopped on a real engine."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout
from docker_tasks import House

from stillhouse.contract import ConfigurationError, NotPermitted, TryAgain
from stillhouse.orchestration import docker_engine
from stillhouse.orchestration.containers import Ended
from stillhouse.orchestration.runtimes import Volume

pytestmark = pytest.mark.docker


@pytest.mark.parametrize("code", [0, 65, 75])
def test_output_and_exit_code_arrive_and_the_container_goes(house: House, code: int) -> None:
    operator = house.operator()

    assert house.run(house.task("end", str(code)), operator) == Ended(exit_code=code, last_line="last words")

    said = operator.log.lines
    assert [line for line in said if line.startswith("line ")] == [f"line {number}" for number in range(300)]
    assert f"long {'x' * 40_000} end" in said
    assert house.containers() == []


def test_errors_are_output_too(house: House) -> None:
    assert house.run(house.task("complain")).last_line == "error"


def test_lack_of_memory_is_told_apart(house: House) -> None:
    ended = house.run(house.task("eat", memory_gib=0.1))
    assert ended.out_of_memory
    assert ended.killed


def test_removed_container_counts_as_killed(house: House) -> None:
    operator = house.operator()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(house.run, house.task("hold"), operator)
        operator.log.wait_for("count")
        house.engine.remove_container(house.name, force=True)
        assert running.result().exit_code == 137


def test_stopped_task_ends_by_itself(house: House) -> None:
    operator = house.operator()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(house.run, house.task("hold"), operator)
        operator.log.wait_for("up")
        operator.on_kill()
        assert running.result() == Ended(exit_code=75, last_line="stopping")
    assert house.containers() == []


def test_stubborn_task_is_killed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_engine, "SECONDS_TO_STOP", 1)
    operator = house.operator()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(house.run, house.task("hold", "stubborn"), operator)
        operator.log.wait_for("up")
        operator.on_kill()
        assert running.result().exit_code == 137


def test_task_that_was_stopped_before_its_container_ran_does_not_go_on(house: House) -> None:
    operator = house.operator()
    operator.log.on_line = lambda line: operator.on_kill() if line.startswith("starting") else None
    ended = house.run(house.task("hold"), operator)
    assert ended.exit_code in (75, 143)


def test_airflows_timeout_stops_the_container(house: House) -> None:
    operator = house.operator()

    def time_is_up(line: str) -> None:
        if line == "up":
            raise AirflowTaskTimeout

    operator.log.on_line = time_is_up
    with pytest.raises(AirflowTaskTimeout):
        house.run(house.task("hold"), operator)
    operator.on_kill()  # as Airflow does then
    (left,) = house.containers()
    assert house.engine.inspect_container(left)["State"]["ExitCode"] == 75


def test_engine_that_is_away_is_a_reason_to_try_again(house: House, tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = f"unix://{tmp_path_factory.mktemp('e')}/no.sock"
    with pytest.raises(TryAgain, match="can't be reached"):
        house.run(house.task("end", "0"), url=nowhere)


def test_missing_image_is_named(house: House) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigurationError, match="image nobody/has:this is not in the Docker engine"):
        house.run(replace(house.task("end", "0"), image="nobody/has:this"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"volumes": (Volume(source="/no/such/folder", target="/work"),)}, "/no/such/folder"),
        ({"network": "no-such-network"}, "no-such-network"),
        ({"secret_variables": ("NOT_SET",)}, "NOT_SET"),
    ],
)
def test_setting_that_can_not_work_is_no_reason_to_try_again(
    house: House, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        house.run(house.task("end", "0", network=True), **changes)
    assert house.containers() == []


def test_secret_is_not_in_what_the_engine_refuses(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", secret := "planted-8f2c1e")
    volumes = (Volume(source=f"/no/{secret}", target="/work"),)
    with pytest.raises(ConfigurationError, match=r"\*\*\*") as refused:
        house.run(house.task("end", "0"), volumes=volumes, secret_variables=("PLANTED",))
    assert secret not in str(refused.value)
    assert refused.value.__suppress_context__


def test_foreign_container_of_the_same_name_is_left_alone(house: House) -> None:
    foreign = house.engine.create_container(house.runtime.image, ["true"], name=house.name)["Id"]
    try:
        with pytest.raises(ConfigurationError, match="not ours"):
            house.run(house.task("end", "0"))
        assert house.engine.inspect_container(house.name)["Id"] == foreign
    finally:
        house.engine.remove_container(foreign)


def test_nothing_is_unpickled(house: House) -> None:
    with pytest.raises(TypeError, match="retrieve_output"):
        type(house.operator())(task_id="probe", retrieve_output=True)
    operator = house.operator()
    operator.container = {"Id": "any"}
    with pytest.raises(NotPermitted, match="unpickled"):
        operator._attempt_to_retrieve_result()
