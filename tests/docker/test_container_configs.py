"""The containers of three tasks as they are sent to an engine, without one. ``REWRITE_GOLDENS=1`` writes them anew."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.orchestration.containers import ContainerTask
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.hardened import container_config
from stillhouse.orchestration.runtimes import DockerRuntime, Volume
from stillhouse.recipe import StageResources

GOLDENS = Path(__file__).parent / "goldens"
PLAIN = DockerRuntime(image="stillhouse-task:1")
FULL = DockerRuntime(
    image="stillhouse-task:1",
    gpu_image="stillhouse-task:1-gpu",
    network="tasks",
    environment={"AWS_ENDPOINT_URL_S3": "http://s3.example", "HOME": "/nowhere"},
    volumes=(Volume(source="work", target="/work", read_only=False), Volume(source="/srv/models", target="/models")),
)
CASES = {
    "plain": (PLAIN, "permit", False, StageResources(cpus=2, timeout_hours=0.5)),
    "limits": (PLAIN, "validate", True, StageResources(memory_gib=1.5)),
    "gpu": (FULL, "distill", True, StageResources(cpus=4, processes=2, nodes=2, gpus=2, memory_gib=64)),
}


def config_of(case: str) -> dict[str, Any]:
    runtime, stage, network, resources = CASES[case]
    task = ContainerTask(
        name=f"stillhouse-{stage}-0123456789ab",
        arguments=("stage", stage, "--request", "s3://bucket/runs/r1/requests/t1.json", "--work", "/work/here"),
        image=runtime.image_for(resources),
        environment={"STILLHOUSE_STORE": "s3://bucket"},
        network=network,
        resources=resources,
        labels={"run": "toy__r1", "task": "t1", "stage": stage},
    )
    return container_config(
        task,
        Deployment(store="s3://bucket", work=Path("/work/here"), runtime=runtime),
        image="sha256:1",
        digest="sha256:2",
        secrets={"AWS_SECRET_ACCESS_KEY": "planted"} if case == "gpu" else {},
        now=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("case", CASES)
def test_a_container_is_the_golden_one(case: str) -> None:
    golden = GOLDENS / f"{case}.yaml"
    config = config_of(case)
    if os.environ.get("REWRITE_GOLDENS") == "1":
        golden.write_text(yaml.safe_dump(config))
    assert config == yaml.safe_load(golden.read_text())


def test_secret_is_in_the_environment_alone() -> None:
    config = config_of("gpu")
    assert "AWS_SECRET_ACCESS_KEY=planted" in config.pop("Env")
    assert "planted" not in str(config)
