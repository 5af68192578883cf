"""What nobody waits for is stopped and removed; nothing else is."""

from datetime import UTC, datetime, timedelta

import pytest
from docker_tasks import House

from stillhouse.contract import TryAgain
from stillhouse.orchestration import hardened
from stillhouse.orchestration.reaper import reap, reap_container

pytestmark = pytest.mark.docker


def test_overdue_container_is_stopped_and_others_are_not(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardened, "DEADLINE_GRACE", timedelta(hours=-25))
    overdue = house.leave_behind(house.task("hold"))
    foreign = house.engine.create_container(house.runtime.image, ["60"], entrypoint=["sleep"])["Id"]
    house.engine.start(foreign)
    try:
        (reaped,) = [reaped for reaped in reap(house.runtime) if reaped.name == house.name]
        assert (reaped.action, reaped.run, reaped.task) == ("stopped", "r1", house.name)
        assert "its deadline was" in str(reaped)
        assert house.engine.inspect_container(overdue)["State"]["ExitCode"] == 75
        assert house.engine.inspect_container(foreign)["State"]["Running"]
        assert house.name not in {reaped.name for reaped in reap(house.runtime)}, "its end may still be read"
    finally:
        house.engine.remove_container(foreign, force=True)


def test_container_within_its_time_is_left_alone(house: House) -> None:
    running = house.engine.inspect_container(house.leave_behind(house.task("hold", timeout_hours=1)))
    assert reap_container(house.engine, running, now=datetime.now(UTC) + timedelta(hours=1)) is None
    assert reap_container(house.engine, running, now=datetime.now(UTC) + timedelta(hours=2)) is not None


def test_end_is_kept_for_an_hour(house: House) -> None:
    left = house.leave_behind(house.task("end", "0"))
    house.engine.wait(left)
    ended = house.engine.inspect_container(left)
    now = datetime.now(UTC)

    assert reap_container(house.engine, ended, now=now + timedelta(minutes=59)) is None
    assert house.containers() == [left]
    reaped = reap_container(house.engine, ended, now=now + timedelta(minutes=61))
    assert reaped is not None
    assert reaped.action == "removed"
    assert house.containers() == []


def test_container_that_never_ran_goes_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = house.operator()
    monkeypatch.setattr(operator, "_start", lambda container: None)
    operator._connect(house.runtime.url)
    left = operator._open(house.task("end", "0"), house.deployment(), {}).container
    created = house.engine.inspect_container(left)

    reaped = reap_container(house.engine, created, now=datetime.now(UTC) + timedelta(hours=2))
    assert reaped is not None
    assert "never started" in reaped.reason
    assert house.containers() == []


def test_engine_that_is_away(house: House, tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = f"unix://{tmp_path_factory.mktemp('e')}/no.sock"
    with pytest.raises(TryAgain, match="can't be reached"):
        list(reap(house.runtime.model_copy(update={"url": nowhere})))
