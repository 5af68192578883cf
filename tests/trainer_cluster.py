"""A namespace of a real cluster with our double of the Trainer at work."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trainer_double
import yaml
from clusters import Cluster
from kubernetes import client, watch
from trainer_double import TrainerDouble

RUNTIME = Path(__file__).parents[1] / "infra" / "kubernetes" / "components" / "trainer" / "runtime.yaml"


@dataclass(frozen=True, kw_only=True)
class TrainerCluster:
    """A namespace in which the double makes pods of TrainJobs."""

    cluster: Cluster
    namespace: str
    image: str
    runtime: str
    """Name of a ClusterTrainingRuntime: the deployment's own, without what must exist beside it."""
    objects: client.CustomObjectsApi
    core: client.CoreV1Api
    seen_first: str
    """Version of the list of TrainJobs before the first one."""

    def jobs(self) -> list[dict[str, Any]]:
        """Return the TrainJobs that there are."""
        found = self.objects.list_namespaced_custom_object(*trainer_double.API, self.namespace, "trainjobs")
        return list(found["items"])

    def created(self, name: str) -> int:
        """Return how often the API server has created a TrainJob of that name."""
        events = watch.Watch().stream(
            self.objects.list_namespaced_custom_object,
            *trainer_double.API,
            self.namespace,
            "trainjobs",
            resource_version=self.seen_first,
            timeout_seconds=1,
        )
        return sum(event["type"] == "ADDED" and event["object"]["metadata"]["name"] == name for event in events)

    def pods(self, name: str) -> list[client.V1Pod]:
        """Return the pods of a TrainJob."""
        selector = f"jobset.sigs.k8s.io/jobset-name={name}"
        return list(self.core.list_namespaced_pod(self.namespace, label_selector=selector).items)


@pytest.fixture(scope="module")
def trainer(kubernetes_cluster: Cluster, namespace: str, task_image: str) -> Iterator[TrainerCluster]:
    api = kubernetes_cluster.api()
    trainer_double.install(api)
    objects, core = client.CustomObjectsApi(api), client.CoreV1Api(api)
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "stillhouse-distill"}})
    runtime = yaml.safe_load(RUNTIME.read_text())
    runtime["metadata"]["name"] = namespace
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    pod.pop("priorityClassName")
    for volume in pod.get("volumes", ()):
        if volume.pop("persistentVolumeClaim", None):
            volume["emptyDir"] = {}
    objects.create_cluster_custom_object(*trainer_double.API, "clustertrainingruntimes", runtime)
    listed = objects.list_namespaced_custom_object(*trainer_double.API, namespace, "trainjobs")
    try:
        with TrainerDouble(objects, core, namespace).running():
            yield TrainerCluster(
                cluster=kubernetes_cluster,
                namespace=namespace,
                image=task_image,
                runtime=namespace,
                objects=objects,
                core=core,
                seen_first=listed["metadata"]["resourceVersion"],
            )
    finally:
        objects.delete_cluster_custom_object(*trainer_double.API, "clustertrainingruntimes", namespace)
