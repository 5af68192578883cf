"""Container tasks of known behaviour, and an operator that runs them as pods, outside Airflow."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from clusters import Cluster
from kubernetes import client

from stillhouse.orchestration.airflow.runtimes.kubernetes import PodRun
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import KubernetesRuntime
from stillhouse.recipe import StageResources


@dataclass(frozen=True, kw_only=True)
class Script(ContainerTask):
    """Runs a Python script in place of ``stillhouse``."""

    script: str

    def command(self, python: str = "python") -> tuple[str, ...]:
        return (python, "-u", "-c", self.script)


def script(name: str, text: str, *, image: str, **resources: Any) -> Script:
    return Script(
        name=f"stillhouse-{name}-0123456789ab",
        arguments=(),
        script=text,
        image=image,
        resources=StageResources(**resources),
        labels={"run": "r1", "task": name, "stage": "permit"},
    )


class PodOperator(PodRun):
    """Runs one container task, and returns how it ended."""

    def __init__(self, *, task: ContainerTask, deployment: Deployment, **kwargs: Any) -> None:
        super().__init__(task_id=task.labels["task"], **kwargs)
        self.task = task
        self.deployment = deployment

    def execute(self, context: Any) -> Ended:
        return self.run_container(context, self.task, self.deployment)


def deployment_on(cluster: Cluster, namespace: str, image: str, **runtime: Any) -> Deployment:
    """Return a deployment whose pods run in ``namespace``."""
    settings = {
        "image": image,
        "namespace": namespace,
        "config_file": PurePosixPath(cluster.kubeconfig),
        "gpu_pool": None,
        **runtime,
    }
    return Deployment(store="file:///work/store", work=Path("/work"), runtime=KubernetesRuntime(**settings))


def create_accounts(cluster: Cluster, namespace: str, *stages: str) -> None:
    """Create the service accounts of ``stages``."""
    core = client.CoreV1Api(cluster.api())
    for stage in stages:
        account = client.V1ServiceAccount(metadata=client.V1ObjectMeta(name=f"stillhouse-{stage}"))
        core.create_namespaced_service_account(namespace, account)


def airflow_context(task_id: str, **more: Any) -> Any:
    """Return what an operator sees of Airflow."""
    ti = SimpleNamespace(
        dag_id="toy", task_id=task_id, run_id="r1", map_index=-1, try_number=1, start_date=datetime.now(UTC), **more
    )
    return {"ti": ti, "dag": SimpleNamespace(dag_id="toy"), "run_id": "r1"}
