"""What a container may do, as seen from inside."""

import json
from typing import Any

import pytest
from docker_tasks import House

from stillhouse.orchestration.hardened import MOST_PROCESSES

pytestmark = pytest.mark.docker


@pytest.fixture
def facts(house: House, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite:////secret")
    operator = house.operator()
    assert house.run(house.task("about", cpus=3, memory_gib=0.5), operator).exit_code == 0
    found: dict[str, Any] = json.loads(operator.log.lines[-1])
    found["image"] = house.engine.inspect_image(house.runtime.image)
    return found


def test_container_is_confined(facts: dict[str, Any]) -> None:
    assert facts["uid"] == facts["gid"] == [10001] * 3
    assert {int(held, 16) for held in facts["capabilities"]} == {0}
    assert facts["no_new_privileges"] == "1"
    assert facts["seccomp"] == "2"
    assert facts["core"] == [0, 0]
    assert facts["init"] == "docker-init"

    assert "ro" in facts["mounts"]["/"]
    assert facts["writable"] == ["/tmp", "/var/tmp", "/work"]
    assert {"tmpfs", "noexec", "nosuid", "nodev", "size=2097152k"} <= set(facts["mounts"]["/tmp"])
    assert "tmpfs" not in facts["mounts"]["/var/tmp"]
    assert "size=2097152k" in facts["mounts"]["/dev/shm"]

    assert facts["interfaces"] == ["lo"]
    assert facts["own_address"] == "127.0.0.1"

    assert facts["limits"] == {"memory": str(1 << 29), "pids": str(MOST_PROCESSES), "cpu": "300000"}

    assert facts["airflow"] == []
    digests = [name.partition("@")[2] for name in facts["image"]["RepoDigests"]]
    assert facts["environment"] == {
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "PLAIN": "plain",
        "STILLHOUSE_IMAGE_DIGEST": (digests or [facts["image"]["Id"]])[0],
    }


def test_network_only_where_a_server_is_needed(house: House) -> None:
    operator = house.operator()
    house.run(house.task("about", network=True), operator)
    assert json.loads(operator.log.lines[-1])["interfaces"] != ["lo"]


def test_work_folder_without_a_volume_goes_with_the_container(house: House) -> None:
    operator = house.operator()
    operator.log.on_line = lambda line: anonymous.extend(volumes()) if line.startswith("{") else None
    anonymous: list[str] = []

    def volumes() -> list[str]:
        mounts = house.engine.inspect_container(house.name)["Mounts"]
        return [mount["Name"] for mount in mounts if mount["Type"] == "volume"]

    house.run(house.task("about"), operator, volumes=house.runtime.volumes[:1])
    assert "/work" in json.loads(operator.log.lines[-1])["writable"]
    assert len(anonymous) == 2
    left = {volume["Name"] for volume in house.engine.volumes()["Volumes"] or []}
    assert not left & set(anonymous)


def test_processes_train_together_without_a_network(house: House) -> None:
    operator = house.operator()
    assert house.run(house.task("gloo", processes=2), operator).exit_code == 0
    said = "\n".join(operator.log.lines)
    assert "rank 0 total 3 loaded 4950" in said
    assert "rank 1 total 3 loaded 4950" in said


def test_secret_reaches_the_task_and_nothing_else(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from hashlib import sha256

    from airflow.sdk.log import redact

    monkeypatch.setenv("PLANTED", secret := "planted-8f2c1e")
    operator = house.operator()
    seen: list[dict[str, Any]] = []
    operator.log.on_line = lambda line: seen.append(house.engine.inspect_container(house.name))

    house.run(house.task("digest-of", "PLANTED"), operator, secret_variables=("PLANTED",))

    assert operator.log.lines[-1] == sha256(secret.encode()).hexdigest()
    assert seen
    for container in seen:
        assert f"PLANTED={secret}" in container["Config"].pop("Env")
        assert secret not in json.dumps(container)
    assert secret not in "\n".join(operator.log.lines)
    assert secret not in redact(f"it printed {secret}")
