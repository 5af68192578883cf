"""A test double of ours for the controller of Kubeflow Trainer v2, which no package index has.

It does what the tests need of the real one: a TrainJob becomes a pod for each node, made from the runtime, its patches
and ``spec.trainer``, with the labels and ``PET_*`` variables that the Trainer gives them; the pods' ends and the
deadline become conditions, and a pod that is gone has failed. There are no JobSets and Jobs in between. As the test
cluster has no DNS for Services, nodes meet at the address of the first pod, so the others are made once it has one.
"""

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

API = ("trainer.kubeflow.org", "v1alpha1")
CRDS = Path(__file__).parents[1] / "infra" / "cluster" / "trainer" / "crds.yaml"
PORT = "29500"
NODE = "node"
MERGE_KEYS = {"containers": "name", "volumes": "name", "volumeMounts": "mountPath", "env": "name"}

Json = dict[str, Any]


class TrainerDouble:
    """Reconciles the TrainJobs of one namespace.

    Args:
        objects, core: Clients of the API server, or fakes of them.
    """

    def __init__(self, objects: Any, core: Any, namespace: str) -> None:
        self._objects, self._core, self._namespace = objects, core, namespace
        self._made: set[tuple[str, int]] = set()
        self.errors: list[Exception] = []

    def reconcile(self) -> None:
        """Bring every TrainJob one step further."""
        for job in self._objects.list_namespaced_custom_object(*API, self._namespace, "trainjobs")["items"]:
            if not job["metadata"].get("deletionTimestamp") and not _is_over(job):
                self._reconcile(job)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Reconcile again and again in the background."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.2):
                try:
                    self.reconcile()
                except client.ApiException as error:
                    if error.status not in (404, 409):  # somebody was faster
                        self.errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        assert not self.errors

    def _reconcile(self, job: Json) -> None:
        name, spec = job["metadata"]["name"], job["spec"]
        if spec.get("suspend"):
            self._set(job, "Suspended", "Suspended", "TrainJob is suspended")
            return
        pods = self._core.list_namespaced_pod(
            self._namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}"
        ).items
        age = datetime.now(UTC) - datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        if age.total_seconds() > spec.get("activeDeadlineSeconds", float("inf")):
            self._set(job, "Failed", "DeadlineExceeded", "Training job exceeded its active deadline")
            self._delete(pods)
            return
        runtime = self._objects.get_cluster_custom_object(*API, "clustertrainingruntimes", spec["runtimeRef"]["name"])
        nodes = spec.get("trainer", {}).get("numNodes") or runtime["spec"]["mlPolicy"]["numNodes"]
        made = sum(uid == job["metadata"]["uid"] for uid, _ in self._made)
        if len(pods) < made or any(pod.status.phase == "Failed" for pod in pods):
            self._set(job, "Failed", "FailedJobs", "jobset failed due to one or more job failures")
            self._delete([pod for pod in pods if pod.status.phase in ("Pending", "Running")])
        elif len(pods) == nodes and all(pod.status.phase == "Succeeded" for pod in pods):
            self._set(job, "Complete", "AllJobsCompleted", "jobset completed successfully")
        elif not made:
            self._create(job, runtime, 0, nodes, None)
        elif made < nodes and pods[0].status.pod_ip:
            for node in range(1, nodes):
                self._create(job, runtime, node, nodes, pods[0].status.pod_ip)

    def _create(self, job: Json, runtime: Json, node: int, nodes: int, first: str | None) -> None:
        template = pod_template(job, runtime)
        container = template["spec"]["containers"][0]
        own: Json = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        container["env"] = [
            *container.get("env", []),
            {"name": "PET_NNODES", "value": str(nodes)},
            {"name": "PET_NPROC_PER_NODE", "value": str(job["spec"]["trainer"].get("numProcPerNode", "auto"))},
            {"name": "PET_NODE_RANK", "value": str(node)},
            {"name": "PET_MASTER_ADDR", **({"value": first} if first else own)},
            {"name": "PET_MASTER_PORT", "value": PORT},
        ]
        metadata = job["metadata"]
        owner = {"apiVersion": "/".join(API), "kind": "TrainJob", "name": metadata["name"], "uid": metadata["uid"]}
        labels = {
            **template.get("metadata", {}).get("labels", {}),
            "jobset.sigs.k8s.io/jobset-name": metadata["name"],
            "jobset.sigs.k8s.io/replicatedjob-name": NODE,
            "batch.kubernetes.io/job-completion-index": str(node),
        }
        described = {
            "name": f"{metadata['name']}-{NODE}-0-{node}",
            "labels": labels,
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        }
        self._core.create_namespaced_pod(self._namespace, {"metadata": described, "spec": template["spec"]})
        self._made.add((metadata["uid"], node))

    def _delete(self, pods: list[Any]) -> None:
        for pod in pods:
            self._core.delete_namespaced_pod(pod.metadata.name, self._namespace, grace_period_seconds=5)

    def _set(self, job: Json, kind: str, reason: str, message: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now}
        self._objects.patch_namespaced_custom_object_status(
            *API, self._namespace, "trainjobs", job["metadata"]["name"], {"status": {"conditions": [condition]}}
        )


def pod_template(job: Json, runtime: Json) -> Json:
    """Return the template of a node's pod: the runtime's, with the TrainJob's patches and its trainer."""
    jobs = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    template = next(one for one in jobs if one["name"] == NODE)["template"]["spec"]["template"]
    for patch in job["spec"].get("runtimePatches", ()):
        for one in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            template = merged(template, one["template"]["spec"]["template"])
    container = next(one for one in template["spec"]["containers"] if one["name"] == NODE)
    trainer = job["spec"].get("trainer", {})
    container |= {name: trainer[name] for name in ("image", "command", "args") if name in trainer}
    container["env"] = merged(container.get("env", []), trainer.get("env", []), "env")
    if "resourcesPerNode" in trainer:
        container["resources"] = trainer["resourcesPerNode"]
    return template


def merged(old: Any, new: Any, field: str = "") -> Any:
    """Return ``old`` with ``new`` over it, as a strategic merge: lists of named things by their names."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**copy.deepcopy(old), **{name: merged(old.get(name), value, name) for name, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and field in MERGE_KEYS:
        key = MERGE_KEYS[field]
        found = {one[key]: one for one in old}
        return list((found | {one[key]: merged(found.get(one[key]), one) for one in new}).values())
    return copy.deepcopy(new)


def install(api: client.ApiClient) -> None:
    """Create the Trainer's resource definitions in a cluster, and wait until it serves them."""
    extensions = client.ApiextensionsV1Api(api)
    for document in yaml.safe_load_all(CRDS.read_text()):
        try:
            extensions.create_custom_resource_definition(document)
        except client.ApiException as error:
            if error.status != 409:
                raise
    for document in yaml.safe_load_all(CRDS.read_text()):
        while not _is_served(extensions.read_custom_resource_definition(document["metadata"]["name"])):
            threading.Event().wait(0.1)


def _is_served(definition: Any) -> bool:
    return any(one.type == "Established" and one.status == "True" for one in definition.status.conditions or ())


def _is_over(job: Json) -> bool:
    conditions = job.get("status", {}).get("conditions", ())
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)
