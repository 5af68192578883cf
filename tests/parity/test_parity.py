"""The same workflow on every runtime, with its store, data and teacher in a bucket: the same digests.

The operators are those that DAGs are made of, outside Airflow. Containers and pods reach the S3 server at the address
of Docker's bridge. As a TrainJob, which our double of the Trainer runs, only the training is done: all else are pods.
"""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from buckets import s3_settings
from clusters import Cluster
from kubernetes import client
from pods import airflow_context, create_accounts
from servers import SECRET_KEY, create_bucket, s3_server
from tiny_bucket import digests_of, write_workflow_in_bucket
from trainer_cluster import TrainerCluster

from stillhouse.contract import ResultRef
from stillhouse.orchestration.airflow import StageOperator
from stillhouse.orchestration.airflow.runtimes import operator_class
from stillhouse.orchestration.deployment import DEPLOYMENT_FILE, Deployment
from stillhouse.orchestration.places import airflow_place
from stillhouse.orchestration.plan import plan
from stillhouse.recipe import load_recipe

pytestmark = pytest.mark.slow

BUCKET = "store"
TRAINED = "distill-kd"
SMALL = {"data.checks.min_rows": 10, "teacher.shards": 1, "teacher.finetune.epochs": 1, "training.epochs": 2}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A recipe whose sources are in a bucket, and how containers reach that."""

    recipe_file: Path
    folder: Path
    settings: Mapping[str, str]

    def deployment(self, name: str, runtime: Mapping[str, Any]) -> Path:
        """Write the settings of a deployment with a store of its own."""
        work = str(self.folder / name) if runtime["kind"] == "local" else "/work"
        settings = {"store": f"s3://{BUCKET}/{name}", "work": work, "runtime": dict(runtime)}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    @property
    def tasks(self) -> list[str]:
        """All that needs no MLflow server."""
        planned = plan(load_recipe(self.recipe_file))
        return [task.task_id for task in planned if task.stage not in ("promote", "announce")]

    def run(self, tasks: list[str], results: dict[str, ResultRef]) -> dict[str, ResultRef]:
        """Run tasks in turn in the deployment that the environment names; add their results to ``results``."""
        operator = operator_class(StageOperator, Deployment.from_environment().runtime)
        for task in tasks:
            context = airflow_context(airflow_place(task)[0], xcom_pull=_pull(results)) | {"params": {}}
            made = operator(task_id=task, planned_task=task, recipe_file=str(self.recipe_file)).execute(context)
            results[task] = ResultRef.model_validate(made)
        return results


def _pull(results: Mapping[str, ResultRef]) -> Any:
    by_place = {airflow_place(task): reference.model_dump() for task, reference in results.items()}
    return lambda *, task_ids, map_indexes=-1: by_place.get((task_ids, map_indexes))


@pytest.fixture(scope="module")
def bridge(docker_engine: str) -> str:
    """Return the address under which containers reach this machine."""
    found = subprocess.run(
        ["docker", "network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Subnet}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return str(ip_network(found.stdout.strip())[1])


@pytest.fixture(scope="module")
def place(bridge: str) -> Iterator[Place]:
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        folder.chmod(0o755)  # the containers' user reads the policy in it
        (folder / "s3").mkdir()
        with s3_server(folder / "s3", bridge) as server:
            create_bucket(server.url, BUCKET)
            settings = s3_settings(server.url, folder)
            for variable, value in settings.items():
                patch.setenv(variable, value)
            recipe_file = write_workflow_in_bucket(folder / "tiny", f"s3://{BUCKET}/sources")
            document = load_recipe(recipe_file, SMALL).model_dump(mode="json")
            recipe_file.write_text(yaml.safe_dump(document))
            yield Place(recipe_file=recipe_file, folder=folder, settings=settings)


@pytest.fixture(scope="module")
def reference(place: Place) -> dict[str, ResultRef]:
    """Return the results of the tasks as local processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DEPLOYMENT_FILE, str(place.deployment("local", {"kind": "local"})))
        return place.run(place.tasks, {})


def containers(place: Place, image: str) -> dict[str, Any]:
    """Return the settings that all runtimes with containers share. The key is secret, and not among them."""
    shown = {name: value for name, value in place.settings.items() if name != "AWS_SECRET_ACCESS_KEY"}
    recipe = {"source": str(place.recipe_file.parent), "target": str(place.recipe_file.parent)}
    return {"image": image, "environment": shown, "volumes": [recipe], "gpu_pool": None}


@pytest.fixture(scope="module")
def pods(place: Place, kubernetes_cluster: Cluster, namespace: str, task_image: str) -> dict[str, Any]:
    """Return the settings of both runtimes with pods."""
    key = {"metadata": {"name": "object-store"}, "stringData": {"secret": SECRET_KEY}}
    client.CoreV1Api(kubernetes_cluster.api()).create_namespaced_secret(namespace, key)
    return {
        **containers(place, task_image),
        "namespace": namespace,
        "config_file": str(kubernetes_cluster.kubeconfig),
        "secrets": {"AWS_SECRET_ACCESS_KEY": {"name": "object-store", "key": "secret"}},
    }


@pytest.mark.docker
def test_containers_make_what_processes_make(
    place: Place,
    reference: dict[str, ResultRef],
    docker_engine: str,
    task_image: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = {"secret_variables": ["AWS_SECRET_ACCESS_KEY"]}
    runtime = {"kind": "docker", "url": docker_engine, **containers(place, task_image), **secret}
    monkeypatch.setenv(DEPLOYMENT_FILE, str(place.deployment("docker", runtime)))
    assert digests_of(place.run(place.tasks, {})) == digests_of(reference)


@pytest.mark.kubernetes
def test_a_train_job_makes_what_a_process_makes(
    place: Place,
    reference: dict[str, ResultRef],
    pods: dict[str, Any],
    trainer: TrainerCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = {"kind": "trainjob", **pods, "training_runtime": trainer.runtime}
    monkeypatch.setenv(DEPLOYMENT_FILE, str(place.deployment("trainjob", runtime)))
    before = {task: result for task, result in reference.items() if task != TRAINED}
    made = place.run([TRAINED], before)[TRAINED]
    assert made != reference[TRAINED]
    assert digests_of({TRAINED: made}) == digests_of({TRAINED: reference[TRAINED]})


@pytest.mark.kubernetes
def test_pods_make_what_processes_make(
    place: Place,
    reference: dict[str, ResultRef],
    pods: dict[str, Any],
    trainer: TrainerCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stages = {task.stage for task in plan(load_recipe(place.recipe_file))} - {"distill"}  # that the trainer has made
    create_accounts(trainer.cluster, trainer.namespace, *stages)
    monkeypatch.setenv(DEPLOYMENT_FILE, str(place.deployment("kubernetes", {"kind": "kubernetes", **pods})))
    assert digests_of(place.run(place.tasks, {})) == digests_of(reference)
