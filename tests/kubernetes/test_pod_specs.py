"""The pods of three tasks as they are sent to the API server, without one. ``REWRITE_GOLDENS=1`` writes them anew."""

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes.client import ApiClient

from stillhouse.orchestration.airflow.runtimes.stage_pod import StagePod
from stillhouse.orchestration.containers import ContainerTask
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import KubernetesRuntime, SecretKey, Volume
from stillhouse.recipe import StageResources
from stillhouse.recipe.operation import Toleration

GOLDENS = Path(__file__).parent / "goldens"
IMAGE = "stillhouse/task:1"
PLAIN = KubernetesRuntime(image=IMAGE)
GPU = KubernetesRuntime(
    image=IMAGE,
    gpu_image="stillhouse/task:1-gpu",
    volumes=(Volume(source="work", target="/work", read_only=False), Volume(source="/srv/models", target="/models")),
    priority_class="training",
)
SECRETS = KubernetesRuntime(
    image=IMAGE,
    environment={"AWS_ENDPOINT_URL_S3": "http://s3.example"},
    image_pull_secrets=("registry",),
    secrets={
        "AWS_SECRET_ACCESS_KEY": SecretKey(name="object-store", key="secret"),
        "AWS_ACCESS_KEY_ID": SecretKey(name="object-store", key="id"),
        "TEACHER_KEY": SecretKey(name="teacher", key="key", stages=("generate",)),
    },
    secret_files={"/run/stillhouse/signing-key.pem": SecretKey(name="signing", key="pem", stages=("promote",))},
)
TAINT = Toleration(key="nvidia.com/gpu", effect="NoSchedule")
CASES = {
    "cpu": (PLAIN, "permit", StageResources(cpus=2, memory_gib=1.5, timeout_hours=0.5)),
    "gpu": (
        GPU,
        "distill",
        StageResources(
            cpus=4, processes=2, gpus=2, memory_gib=64, node_selector={"accelerator": "large"}, tolerations=(TAINT,)
        ),
    ),
    "secrets": (SECRETS, "generate", StageResources()),
    "signing": (SECRETS, "promote", StageResources()),
}


def pod_of(case: str) -> dict[str, Any]:
    runtime, stage, resources = CASES[case]
    task = ContainerTask(
        name=f"stillhouse-{stage}-0123456789ab",
        arguments=("stage", stage, "--request", "s3://bucket/runs/r1/requests/t1.json", "--work", "/work"),
        image=runtime.image_for(resources),
        resources=resources,
        labels={"run": "toy__r1", "task": "t1", "stage": stage},
    )
    deployment = Deployment(store="s3://bucket", work=Path("/work"), runtime=runtime)
    pod = StagePod(container_task=task, deployment=deployment, task_id="t1").build_pod_request_obj(dry_run=True)
    plain: dict[str, Any] = ApiClient().sanitize_for_serialization(pod)
    del plain["metadata"]["labels"]["airflow_version"]
    return plain


@pytest.mark.parametrize("case", CASES)
def test_a_pod_is_the_golden_one(case: str) -> None:
    golden = GOLDENS / f"{case}.yaml"
    pod = pod_of(case)
    if os.environ.get("REWRITE_GOLDENS") == "1":
        golden.write_text(yaml.safe_dump(pod))
    assert pod == yaml.safe_load(golden.read_text())


@pytest.mark.parametrize("case", CASES)
def test_todays_kubernetes_knows_every_field(case: str) -> None:
    golden = yaml.safe_load((GOLDENS / f"{case}.yaml").read_text())
    kubernetes_validate.validate(golden, kubernetes_validate.latest_version(), strict=True)


def test_a_field_that_kubernetes_does_not_know_is_noticed() -> None:
    golden = yaml.safe_load((GOLDENS / "cpu.yaml").read_text())
    golden["spec"]["containers"][0]["securityContext"]["readOnlyRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(golden, kubernetes_validate.latest_version(), strict=True)
