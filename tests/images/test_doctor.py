"""The doctor at a real Docker engine."""

import pytest
from engine import docker

from stillhouse.orchestration.doctor.engine import examine_engine
from stillhouse.orchestration.runtimes import DockerRuntime

pytestmark = pytest.mark.docker


def faults(runtime: DockerRuntime) -> dict[str, str]:
    return {finding.subject: finding.remedy for finding in examine_engine(runtime) if finding.remedy and finding.grave}


def test_the_engine_is_asked_for_images_network_and_variables(
    docker_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STILLHOUSE_UNSET", raising=False)
    present = docker("image", "ls", "--filter", "dangling=false", "--format", "{{.Repository}}:{{.Tag}}").splitlines()[
        0
    ]
    assert faults(DockerRuntime(image=present, url=docker_engine)) == {}
    found = faults(
        DockerRuntime(
            image="stillhouse-none:1", url=docker_engine, network="no-network", secret_variables=("STILLHOUSE_UNSET",)
        )
    )
    assert set(found) == {"image", "network", "secrets"}
    assert "STILLHOUSE_UNSET" in found["secrets"]
