"""What runtime ``trainjob`` asks the Trainer for, and how it understands the answer."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml
from airflow.sdk.exceptions import AirflowTaskTimeout
from fake_cluster import FakeCluster
from kubernetes.client import ApiClient
from trainer_cluster import RUNTIME
from trainer_double import CRDS, TrainerDouble, pod_template

from stillhouse.contract import ConfigurationError, TryAgain
from stillhouse.orchestration.airflow.runtimes import stage_train_job
from stillhouse.orchestration.airflow.runtimes.stage_pod import StagePod
from stillhouse.orchestration.airflow.runtimes.stage_train_job import StageTrainJob
from stillhouse.orchestration.airflow.runtimes.trainjob import TrainJobRun
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import SecretKey, TrainJobRuntime, Volume
from stillhouse.recipe import StageResources
from stillhouse.recipe.operation import Toleration

GOLDEN = Path(__file__).parent / "golden.yaml"
NAME = "stillhouse-distill-0123456789ab"
WORK = Volume(source="work", target="/work", read_only=False)


def deployment(**runtime: Any) -> Deployment:
    settings = {"image": "stillhouse/task:1", "gpu_image": "stillhouse/task:1-gpu", "volumes": (WORK,), **runtime}
    return Deployment(store="s3://bucket", work=Path("/work"), runtime=TrainJobRuntime(**settings))


def task(**resources: Any) -> ContainerTask:
    return ContainerTask(
        name=NAME,
        arguments=("stage", "distill", "--request", "s3://bucket/runs/r1/requests/t1.json", "--work", "/work"),
        image="stillhouse/task:1-gpu",
        resources=StageResources(**resources),
        labels={"run": "toy__r1", "task": "distill-kd", "stage": "distill"},
    )


def context() -> Any:
    return {"ti": SimpleNamespace(dag_id="toy", run_id="r1", task_id="distill-kd", map_index=-1)}


RICH = {
    "cpus": 4,
    "processes": 2,
    "nodes": 3,
    "gpus": 2,
    "memory_gib": 64,
    "timeout_hours": 2,
    "node_selector": {"accelerator": "large"},
    "tolerations": (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),),
}
SECRETS = {
    "queue": "students",
    "image_pull_secrets": ("registry",),
    "environment": {"AWS_REGION": "here"},
    "secrets": {"AWS_SECRET_ACCESS_KEY": SecretKey(name="object-store", key="secret")},
}


def train_job(resources: dict[str, Any], **runtime: Any) -> dict[str, Any]:
    return StageTrainJob(container_task=task(**resources), deployment=deployment(**runtime), task_id="t").build(
        context()
    )


def test_a_train_job_is_the_golden_one() -> None:
    job = train_job(RICH, **SECRETS)
    if os.environ.get("REWRITE_GOLDENS") == "1":
        GOLDEN.write_text(yaml.safe_dump(job))
    assert job == yaml.safe_load(GOLDEN.read_text())


def test_the_resource_definition_knows_every_field() -> None:
    documents = yaml.safe_load_all(CRDS.read_text())
    schema = next(one for one in documents if one["spec"]["names"]["kind"] == "TrainJob")
    (version,) = schema["spec"]["versions"]
    job = train_job(RICH, **SECRETS)
    assert unknown_fields(job["spec"], version["schema"]["openAPIV3Schema"]["properties"]["spec"]) == []
    job["spec"]["trainer"]["numNode"] = 2
    assert unknown_fields(job["spec"], version["schema"]["openAPIV3Schema"]["properties"]["spec"]) == ["numNode"]


def unknown_fields(value: Any, schema: dict[str, Any]) -> list[str]:
    if isinstance(value, list):
        return [name for one in value for name in unknown_fields(one, schema["items"])]
    if not isinstance(value, dict) or "properties" not in schema:
        return []
    known = schema["properties"]
    unknown = [name for name in value if name not in known]
    return unknown + [name for key in value if key in known for name in unknown_fields(value[key], known[key])]


def test_its_pods_are_those_of_runtime_kubernetes_but_for_what_makes_them_nodes() -> None:
    resources = {name: value for name, value in RICH.items() if name != "nodes"}
    runtime = yaml.safe_load(RUNTIME.read_text())
    node = pod_template(train_job(resources, **SECRETS), runtime)["spec"]
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": node},
        kubernetes_validate.latest_version(),
        strict=True,
    )
    settings = deployment(**SECRETS, priority_class=node["priorityClassName"])
    pod = StagePod(container_task=task(**resources), deployment=settings, task_id="t").build_pod_request_obj(
        dry_run=True
    )
    plain = ApiClient().sanitize_for_serialization(pod)["spec"]
    (own,), (usual,) = node.pop("containers"), plain.pop("containers")
    for name in ("image", "resources"):
        assert own[name] == usual[name], name
    assert all(mount in own["volumeMounts"] for mount in usual["volumeMounts"])
    assert all(volume in node["volumes"] for volume in plain["volumes"])
    assert own["securityContext"].items() >= usual["securityContext"].items()
    assert {one["name"]: one for one in own["env"]}.items() >= {one["name"]: one for one in usual["env"]}.items()
    for name in ("securityContext", "serviceAccountName", "nodeSelector", "tolerations", "imagePullSecrets"):
        assert node[name] == plain[name], name
    for name in ("automountServiceAccountToken", "enableServiceLinks", "restartPolicy"):
        assert node[name] == plain[name], name


class Runs(TrainJobRun):
    def __init__(self, *, what: ContainerTask, where: Deployment, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.what, self.where = what, where

    def execute(self, context: Any) -> Ended:
        return self.run_container(context, self.what, self.where)


def runs(where: Deployment) -> Runs:
    return Runs(what=task(nodes=2), where=where, task_id="distill-kd")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    made = FakeCluster()
    made.runtimes["stillhouse-distill"] = yaml.safe_load(RUNTIME.read_text())
    monkeypatch.setattr(stage_train_job, "POLL_SECONDS", 0)
    monkeypatch.setattr(StageTrainJob, "hook", made.hook)
    return made


def run(cluster: FakeCluster, act: Any, *, looks_before: int = 3) -> Ended:
    double = TrainerDouble(cluster, cluster, "stillhouse")
    looks = 0

    def before_read() -> None:
        nonlocal looks
        looks += 1
        double.reconcile()
        if looks > looks_before:
            act()
            double.reconcile()

    cluster.before_read = before_read
    ended = runs(deployment()).execute(context())
    assert isinstance(ended, Ended)
    return ended


def node(number: int) -> str:
    return f"{NAME}-node-0-{number}"


def test_an_end_is_what_the_nodes_say(cluster: FakeCluster) -> None:
    assert run(cluster, lambda: [cluster.end_pod(node(0), 0), cluster.end_pod(node(1), 0)]) == Ended(exit_code=0)
    assert run(cluster, lambda: cluster.end_pod(node(1), 78)) == Ended(exit_code=78)
    assert run(cluster, lambda: cluster.lose_pod(node(1))) == Ended(exit_code=137)
    assert run(cluster, cluster.vanish) == Ended(exit_code=137)
    memory = run(cluster, lambda: cluster.end_pod(node(0), 137, reason="OOMKilled"))
    assert memory == Ended(exit_code=137, out_of_memory=True)


def test_a_deadline_is_a_timeout(cluster: FakeCluster) -> None:
    with pytest.raises(AirflowTaskTimeout):
        run(cluster, lambda: cluster.job()["metadata"].update(creationTimestamp="2026-01-01T00:00:00Z"))


@pytest.mark.parametrize(
    ("reason", "kind", "told"),
    [
        ("ImagePullBackOff", ConfigurationError, "image_pull_secrets"),
        ("CreateContainerConfigError", ConfigurationError, r"runtime\.secrets"),
        ("ContainerCreating", TryAgain, "ContainerCreating"),
    ],
)
def test_why_pods_do_not_start_is_told(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, reason: str, kind: type[Exception], told: str
) -> None:
    monkeypatch.setattr(stage_train_job, "SECONDS_TO_START", 1e-9)
    with pytest.raises(kind, match=told):
        run(cluster, lambda: cluster.hold_pod(node(0), reason, "no"), looks_before=0)


@pytest.mark.parametrize(
    ("code", "reason", "again"),
    [(75, "Error", True), (137, "Error", True), (137, "OOMKilled", False), (78, "Error", False), (70, "Error", False)],
)
def test_a_failure_that_nobody_saw_is_repeated_only_if_that_helps(
    cluster: FakeCluster, code: int, reason: str, again: bool
) -> None:
    lost = StageTrainJob(container_task=task(nodes=2), deployment=deployment(), task_id="t")
    lost._ensure(context())
    double = TrainerDouble(cluster, cluster, "stillhouse")
    for _ in range(2):
        double.reconcile()
    cluster.end_pod(node(0), code, reason=reason)
    double.reconcile()
    ended = run(cluster, lambda: [cluster.end_pod(name, 0) for name in cluster.pods])
    assert cluster.created == [NAME] * (2 if again else 1)
    assert ended.exit_code == (0 if again else code)


@pytest.mark.parametrize("volumes", [(), (Volume(source="work", target="/work"),), (Volume(source="a", target="/a"),)])
def test_several_nodes_need_one_work_folder(volumes: tuple[Volume, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"2 nodes: a writable volume of runtime\.volumes must hold /work"):
        runs(deployment(volumes=volumes)).execute(context())
