"""The part of a Kubernetes API server that TrainJobs need, in memory: custom objects, pods and their output.

It answers as the real one: 404, 409, preconditions, propagation of a deletion to the pods. A pod ends when the test
says so. ``before_read`` is called before a TrainJob is read, and may change what there is.
"""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from kubernetes.client import (
    ApiClient,
    ApiException,
    V1ContainerState,
    V1ContainerStateTerminated,
    V1ContainerStateWaiting,
    V1ContainerStatus,
    V1Pod,
    V1PodStatus,
)
from urllib3.exceptions import HTTPError

Json = dict[str, Any]


class FakeCluster:
    """Holds everything; see the module."""

    def __init__(self) -> None:
        self.jobs: dict[str, Json] = {}
        self.runtimes: dict[str, Json] = {}
        self.pods: dict[str, V1Pod] = {}
        self.output: dict[str, list[str]] = {}
        self.created: list[str] = []
        self.deletions: list[tuple[str, str]] = []
        self.log_requests: list[int | None] = []
        self.before_read: Callable[[], None] = lambda: None
        self.away = 0
        """Requests that fail as if nobody listened."""
        self._numbers = itertools.count(1)

    @property
    def hook(self) -> Any:
        """What stands in for the operator's ``KubernetesHook``."""
        return SimpleNamespace(custom_object_client=self, core_v1_client=self, get_namespace=lambda: "fake")

    def _request(self) -> None:
        if self.away:
            self.away -= 1
            raise HTTPError("connection refused")

    def job(self) -> Json:
        """Return the only TrainJob."""
        (found,) = self.jobs.values()
        return found

    def end_job(self, kind: str, reason: str, message: str = "") -> None:
        """Give the only TrainJob its last condition."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.job()["status"] = {**self.job().get("status", {}), "conditions": [condition]}

    def vanish(self) -> None:
        """Remove all TrainJobs with their pods."""
        self.jobs.clear()
        self.pods.clear()

    def start_pod(self, name: str) -> None:
        self.pods[name].status.phase = "Running"

    def end_pod(self, name: str, exit_code: int, *, reason: str = "Error", second: int = 0) -> None:
        finished = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
        terminated = V1ContainerStateTerminated(exit_code=exit_code, reason=reason, finished_at=finished)
        self.pods[name].status.phase = "Failed" if exit_code else "Succeeded"
        self._set_state(name, V1ContainerState(terminated=terminated))

    def lose_pod(self, name: str) -> None:
        """As when its machine is lost, or needs the room."""
        self.pods[name].status.phase = "Failed"
        self.pods[name].status.container_statuses = None

    def hold_pod(self, name: str, reason: str, message: str) -> None:
        """Let its container wait."""
        self._set_state(name, V1ContainerState(waiting=V1ContainerStateWaiting(reason=reason, message=message)))

    def _set_state(self, name: str, state: V1ContainerState) -> None:
        status = V1ContainerStatus(name="node", state=state, image="", image_id="", ready=False, restart_count=0)
        self.pods[name].status.container_statuses = [status]

    def create_namespaced_custom_object(
        self, group: str, version: str, namespace: str, plural: str, body: Json
    ) -> Json:
        self._request()
        name = body["metadata"]["name"]
        if name in self.jobs:
            raise ApiException(status=409, reason="Conflict")
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = {**body["metadata"], "uid": f"uid-{next(self._numbers)}", "creationTimestamp": created}
        self.jobs[name] = {**body, "metadata": metadata}
        self.created.append(name)
        return dict(self.jobs[name])

    def get_namespaced_custom_object(self, group: str, version: str, namespace: str, plural: str, name: str) -> Json:
        self._request()
        if name in self.jobs:
            self.before_read()
        found = self.jobs.get(name)
        if found is None:
            raise ApiException(status=404, reason="Not Found")
        return dict(found)

    def list_namespaced_custom_object(self, group: str, version: str, namespace: str, plural: str) -> Json:
        return {"items": list(self.jobs.values())}

    def get_cluster_custom_object(self, group: str, version: str, plural: str, name: str) -> Json:
        return self.runtimes[name]

    def patch_namespaced_custom_object_status(
        self, group: str, version: str, namespace: str, plural: str, name: str, body: Json
    ) -> None:
        self.jobs[name]["status"] = {**self.jobs[name].get("status", {}), **body["status"]}

    def delete_namespaced_custom_object(
        self, group: str, version: str, namespace: str, plural: str, name: str, body: Any
    ) -> None:
        self._request()
        found = self.jobs.get(name)
        if found is None:
            raise ApiException(status=404, reason="Not Found")
        if body.preconditions.uid != found["metadata"]["uid"]:
            raise ApiException(status=409, reason="Conflict")
        self.deletions.append((name, body.propagation_policy))
        del self.jobs[name]
        for pod in self._pods_of(name):
            del self.pods[pod.metadata.name]

    def create_namespaced_pod(self, namespace: str, body: Json) -> None:
        pod = ApiClient()._ApiClient__deserialize(body, "V1Pod")  # type: ignore[attr-defined]
        pod.metadata.uid, pod.metadata.namespace = f"uid-{next(self._numbers)}", namespace
        pod.status = V1PodStatus(phase="Pending", pod_ip="10.0.0.1")
        self.pods[pod.metadata.name] = pod
        self.output.setdefault(pod.metadata.name, [])

    def list_namespaced_pod(self, namespace: str, *, label_selector: str) -> Any:
        self._request()
        wanted = dict(pair.split("=") for pair in label_selector.split(","))
        found = [pod for pod in self.pods.values() if wanted.items() <= pod.metadata.labels.items()]
        return SimpleNamespace(items=found)

    def delete_namespaced_pod(self, name: str, namespace: str, grace_period_seconds: int) -> None:
        del self.pods[name]

    def read_namespaced_pod_log(
        self,
        name: str,
        namespace: str,
        *,
        container: str,
        timestamps: bool,
        since_seconds: int | None,
        _preload_content: bool,
    ) -> Any:
        self._request()
        assert container == "node"
        assert timestamps
        self.log_requests.append(since_seconds)
        text = "".join(f"2026-01-01T00:00:{number:02}.5Z {line}\n" for number, line in enumerate(self.output[name]))
        return SimpleNamespace(data=text.encode())

    def _pods_of(self, job: str) -> list[V1Pod]:
        return [pod for pod in self.pods.values() if pod.metadata.labels["jobset.sigs.k8s.io/jobset-name"] == job]
