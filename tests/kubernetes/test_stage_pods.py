"""A real stage as a pod, through the operator that DAGs are made of. The store is a folder that both sides see."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from clusters import Cluster
from kubernetes import client
from pods import airflow_context, create_accounts

from stillhouse.contract import ResultRef
from stillhouse.orchestration.airflow import StageKilled, StageOperator
from stillhouse.orchestration.airflow.runtimes import operator_class
from stillhouse.orchestration.airflow.runtimes.stage_pod import StagePod
from stillhouse.orchestration.deployment import DEPLOYMENT_FILE, Deployment
from stillhouse.stages import read_records
from stillhouse.stages.records import verify_result
from stillhouse.store import ObjectStore, open_store

pytestmark = pytest.mark.kubernetes

STAGE = "permit"


class Workflow:
    """A recipe whose first task runs as a pod."""

    def __init__(self, recipe_file: Path, deployment: Deployment, core: client.CoreV1Api) -> None:
        self.recipe_file = recipe_file
        self.deployment = deployment
        self.core = core

    @property
    def store(self) -> ObjectStore:
        return open_store(self.deployment.store)

    def run(self) -> ResultRef:
        operator = operator_class(StageOperator, self.deployment.runtime)(
            task_id=STAGE, planned_task=STAGE, recipe_file=str(self.recipe_file)
        )
        return ResultRef.model_validate(operator.execute(airflow_context(STAGE) | {"params": {}}))

    def pods(self) -> list[Any]:
        pods: list[Any] = self.core.list_namespaced_pod(self.deployment.runtime.namespace).items
        return [pod for pod in pods if not pod.metadata.deletion_timestamp]


@pytest.fixture
def workflow_of_pods(
    workflow: Path,
    kubernetes_cluster: Cluster,
    namespace: str,
    task_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Workflow]:
    folder = workflow.parent
    settings = {
        "store": f"file://{folder / 'store'}",
        "work": "/work",
        "runtime": {
            "kind": "kubernetes",
            "image": task_image,
            "namespace": namespace,
            "config_file": str(kubernetes_cluster.kubeconfig),
            "gpu_pool": None,
            "volumes": [{"source": str(folder / "store"), "target": str(folder / "store"), "read_only": False}],
        },
    }
    (folder / "deployment.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv(DEPLOYMENT_FILE, str(folder / "deployment.yaml"))
    # The pod's user writes into folders that this one makes.
    before = os.umask(0)
    try:
        (folder / "store").mkdir()
        yield Workflow(workflow, Deployment.from_environment(), client.CoreV1Api(kubernetes_cluster.api()))
    finally:
        os.umask(before)


@pytest.fixture(scope="module", autouse=True)
def accounts(kubernetes_cluster: Cluster, namespace: str) -> None:
    create_accounts(kubernetes_cluster, namespace, STAGE)


def lose_every_pod(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every pod vanish before it starts, as on a node that is lost."""
    start = StagePod.await_pod_start

    def vanish_and_start(self: StagePod, pod: client.V1Pod) -> None:
        workflow.core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0)
        start(self, pod)

    monkeypatch.setattr(StagePod, "await_pod_start", vanish_and_start)


def test_a_stage_ends_with_a_verified_result_also_when_its_pod_vanishes(
    workflow_of_pods: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = workflow_of_pods.run()
    assert verify_result(reference).stage == STAGE
    assert read_records(workflow_of_pods.store, "toy__r1")[STAGE].state == "succeeded"
    assert workflow_of_pods.pods() == []
    lose_every_pod(workflow_of_pods, monkeypatch)
    assert workflow_of_pods.run() == reference


def test_a_pod_that_vanishes_without_a_result_is_a_failure(
    workflow_of_pods: Workflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_every_pod(workflow_of_pods, monkeypatch)
    with pytest.raises(StageKilled):
        workflow_of_pods.run()
    assert read_records(workflow_of_pods.store, "toy__r1")[STAGE].exit_code == 137
