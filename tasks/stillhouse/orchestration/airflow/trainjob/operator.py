"""Make, find, follow and remove a TrainJob."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import md5
from typing import Any, Literal, TypeVar

from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from airflow.sdk import BaseOperator, Context
from kubernetes.client import ApiClient, ApiException, V1DeleteOptions, V1Pod, V1Preconditions
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential
from urllib3.exceptions import HTTPError

from stillhouse.orchestration.airflow.trainjob.ends import (
    Json,
    TrainJobEnd,
    TrainJobFailed,
    TrainJobNameTaken,
    TrainJobNotStarted,
    TrainJobStillThere,
    end_of,
    vanished,
)
from stillhouse.orchestration.airflow.trainjob.pods import CONTAINER, PodLog, is_unscheduled, node_of, why_waiting

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

_JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
_ROLE_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_MAX_NAME = 45
"""The names of the pods, which have at most 63 characters, are longer by ``-node-0-NNN-xxxxx``."""

Result = TypeVar("Result")


class TrainJobOperator(BaseOperator):
    """Run a TrainJob to its end.

    A try that finds the TrainJob of an earlier one goes on with it, provided that it carries this task's labels; one
    that has failed is removed and made anew. When it has ended, the TrainJob itself is deleted, since a controller may
    run it again once its JobSet is gone (kubeflow/trainer#3737).

    Args:
        name: Of the TrainJob, at most 45 characters; by default from the task instance.
        namespace: By default the connection's, else ``default``.
        runtime_ref: Name of a ClusterTrainingRuntime, or a whole ``spec.runtimeRef``.
        image, command, args: What runs on every node; by default the runtime's.
        env: Variables of every node: a mapping, or ``V1EnvVar`` or dicts where values come from Secrets.
        num_nodes: By default the runtime's.
        num_proc_per_node: Processes that torchrun starts on each node, or ``auto``, ``cpu``, ``gpu``.
        resources_per_node: ``V1ResourceRequirements`` or a dict.
        runtime_patches: Entries of ``spec.runtimePatches``.
        labels, annotations: Of the TrainJob, besides the labels that tell whose it is.
        suspend: Create it suspended, for somebody else to resume.
        queue_name: Kueue's LocalQueue. Implies ``suspend``: Kueue resumes it.
        active_deadline_seconds: After which the Trainer ends it; the time that it is suspended doesn't count.
        startup_timeout_seconds: From scheduled pods to running containers; 0 waits for ever. Neither a queue nor a full
            cluster counts.
        deletion_timeout_seconds: For what an earlier try left behind.
        api_timeout_seconds: How long the API server may be away.
        poll_interval: Seconds.
        get_logs: Show what the first node writes, as far as it can be read. Another try shows it from the beginning.
        on_finish: Delete the TrainJob always, or only if it succeeded; a failed one is then deleted by the next try.
        kubernetes_conn_id, config_file, in_cluster: See `KubernetesHook`.
    """

    template_fields: Sequence[str] = (
        *("name", "namespace", "runtime_ref", "image", "command", "args", "env", "num_nodes", "num_proc_per_node"),
        *("resources_per_node", "labels", "annotations", "queue_name", "config_file", "kubernetes_conn_id"),
    )
    ui_color = "#cdd9f2"

    def __init__(
        self,
        *,
        runtime_ref: str | Json,
        active_deadline_seconds: int,
        name: str | None = None,
        namespace: str | None = None,
        image: str | None = None,
        command: Sequence[str] | None = None,
        args: Sequence[str] | None = None,
        env: Mapping[str, str] | Sequence[Any] | None = None,
        num_nodes: int | None = None,
        num_proc_per_node: int | str | None = None,
        resources_per_node: Any = None,
        runtime_patches: Sequence[Json] = (),
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        suspend: bool = False,
        queue_name: str | None = None,
        startup_timeout_seconds: float = 900,
        deletion_timeout_seconds: float = 120,
        api_timeout_seconds: float = 600,
        poll_interval: float = 10,
        get_logs: bool = True,
        on_finish: Literal["delete", "delete_succeeded"] = "delete",
        kubernetes_conn_id: str | None = KubernetesHook.default_conn_name,
        config_file: str | None = None,
        in_cluster: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if active_deadline_seconds < 1:
            raise ValueError("active_deadline_seconds must be at least 1")
        self.runtime_ref, self.runtime_patches = runtime_ref, runtime_patches
        self.active_deadline_seconds = active_deadline_seconds
        self.name, self.namespace = name, namespace
        self.image, self.command, self.args, self.env = image, command, args, env
        self.num_nodes, self.num_proc_per_node = num_nodes, num_proc_per_node
        self.resources_per_node = resources_per_node
        self.labels, self.annotations = labels, annotations
        self.suspend, self.queue_name = suspend, queue_name
        self.startup_timeout_seconds = startup_timeout_seconds
        self.deletion_timeout_seconds = deletion_timeout_seconds
        self.api_timeout_seconds = api_timeout_seconds
        self.poll_interval = poll_interval
        self.get_logs = get_logs
        self.on_finish = on_finish
        self.kubernetes_conn_id, self.config_file, self.in_cluster = kubernetes_conn_id, config_file, in_cluster
        self.last_line = ""
        self._job: Json | None = None
        self._killed = False
        self._output: PodLog | None = None
        self._output_fails = False
        self._progress = ""
        self._started = False
        self._starts_since: float | None = None

    @cached_property
    def hook(self) -> KubernetesHook:
        """The connection to the cluster."""
        return KubernetesHook(conn_id=self.kubernetes_conn_id, config_file=self.config_file, in_cluster=self.in_cluster)

    def execute(self, context: Context) -> Json:
        """Return the TrainJob's status at its end.

        Raises:
            TrainJobFailed: It failed or vanished.
            TrainJobNameTaken, TrainJobNotStarted, TrainJobStillThere: See there.
            ApiException: The API server refuses something, or was away for too long.
        """
        end = self.run_job(context)
        if not end.succeeded:
            raise TrainJobFailed(str(self.name), end)
        return end.status

    def run_job(self, context: Context) -> TrainJobEnd:
        """Make the TrainJob, or find it, and return how it ended."""
        job = self._job = self._ensure(context)
        if self._killed:  # it was not there yet
            self.on_kill()
        end = end_of(job, self._pods)
        while end is None:
            pods = self._pods()
            self._show_output(pods)
            self._show_progress(job)
            self._check_start(job, pods)
            time.sleep(self.poll_interval)
            found = self._read()
            if found is None or found["metadata"]["uid"] != job["metadata"]["uid"]:
                self._job = None
                return vanished(job)
            job = found
            end = end_of(job, self._pods)
        self._show_output(self._pods())
        self.log.info("TrainJob %s: %s, %s", self.name, end.reason, end.message)
        if end.succeeded or self.on_finish == "delete":
            # In the background: in the foreground, its JobSet would go first.
            self._call(self._delete, job, "Background")
        self._job = None
        return end

    def on_kill(self) -> None:
        """Delete the TrainJob; it is gone when its pods are."""
        self._killed = True
        if self._job is not None:
            self._delete(self._job, "Foreground")

    def reports_earlier_failure(self, end: TrainJobEnd) -> bool:
        """Tell whether a failure that no earlier try lived to see is this try's, too; else the job is made anew."""
        return False

    def build(self, context: Context) -> Json:
        """Return the TrainJob that is asked for."""
        plain = {
            "image": self.image,
            "command": _listed(self.command),
            "args": _listed(self.args),
            "env": _variables(self.env),
            "numNodes": self.num_nodes,
            "numProcPerNode": self.num_proc_per_node,
            "resourcesPerNode": self.resources_per_node,
        }
        queued = {QUEUE_LABEL: self.queue_name} if self.queue_name else {}
        job = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainJob",
            "metadata": {
                "name": self.name or _default_name(context),
                "namespace": self.namespace or self.hook.get_namespace() or "default",
                "labels": {**_labels_of(context), **(self.labels or {}), **queued},
                "annotations": dict(self.annotations or {}),
            },
            "spec": {
                "runtimeRef": {"name": self.runtime_ref} if isinstance(self.runtime_ref, str) else self.runtime_ref,
                "trainer": {name: value for name, value in plain.items() if value is not None},
                "activeDeadlineSeconds": self.active_deadline_seconds,
                "suspend": self.suspend or bool(self.queue_name),
                **({"runtimePatches": list(self.runtime_patches)} if self.runtime_patches else {}),
            },
        }
        made: Json = ApiClient().sanitize_for_serialization(job)
        return made

    def _ensure(self, context: Context) -> Json:
        """Return the TrainJob of an earlier try that is still worth something, else a new one."""
        wanted = self.build(context)
        self.name, self.namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
        found = self._read()
        if found is not None:
            self._check_owner(found, wanted)
            end = end_of(found, self._pods)
            failed = end is not None and not end.succeeded and not self.reports_earlier_failure(end)
            if not failed and not found["metadata"].get("deletionTimestamp"):
                self.log.info("found TrainJob %s of an earlier try: %s", self.name, end.reason if end else "running")
                return found
            self.log.info("removing TrainJob %s of an earlier try", self.name)
            self._call(self._delete, found, "Background")
        self._wait_until_clear()
        try:
            made: Json = self._call(
                self.hook.custom_object_client.create_namespaced_custom_object, *self._place, wanted
            )
        except ApiException as error:
            # The answer to a request was lost, or a try that is believed dead was faster.
            if error.status != 409 or (found := self._read()) is None:
                raise
            self._check_owner(found, wanted)
            return found
        self.log.info("TrainJob %s is created", self.name)
        return made

    def _check_owner(self, found: Json, wanted: Json) -> None:
        labels = found["metadata"].get("labels") or {}
        ours = {name: value for name, value in wanted["metadata"]["labels"].items() if name != QUEUE_LABEL}
        if not ours.items() <= labels.items():
            owner = ", ".join(f"{name}={value}" for name, value in sorted(labels.items())) or "nobody: it has no labels"
            raise TrainJobNameTaken(
                f"TrainJob {self.name} in namespace {self.namespace} belongs to another owner ({owner}); delete it, or "
                "choose another name"
            )

    def _wait_until_clear(self) -> None:
        """Wait for what is left of an earlier TrainJob: its JobSet has the name that the new one's will have."""
        deadline = time.monotonic() + self.deletion_timeout_seconds
        while self._read() is not None or self._pods():
            if time.monotonic() > deadline:
                raise TrainJobStillThere(f"TrainJob {self.name} of an earlier try, or a pod of it, is being deleted")
            time.sleep(min(1.0, self.poll_interval))

    def _check_start(self, job: Json, pods: list[V1Pod]) -> None:
        """Delete the TrainJob if its pods have a machine and still don't start."""
        waiting = [pod for pod in pods if pod.status.phase == "Pending"]
        self._started = self._started or (len(pods) >= (self.num_nodes or 1) and not waiting)
        if self._started or not self.startup_timeout_seconds:
            return
        if job["spec"].get("suspend") or any(map(is_unscheduled, waiting)):
            self._starts_since = None
            return
        now = time.monotonic()
        self._starts_since = now if self._starts_since is None else self._starts_since
        if now - self._starts_since > self.startup_timeout_seconds:
            reason, message = why_waiting(waiting[0]) if waiting else ("", "it has no pods; look at its events")
            self._call(self._delete, job, "Foreground")
            self._job = None
            raise TrainJobNotStarted(str(self.name), reason, message)

    def _show_output(self, pods: list[V1Pod]) -> None:
        first = next((pod for pod in pods if node_of(pod) == 0), None)
        if not self.get_logs or first is None or first.status.phase == "Pending":
            return
        if self._output is None or self._output.uid != first.metadata.uid:
            self._output = PodLog(self.hook.core_v1_client, first)
        try:
            lines = self._output.new_lines()
        except (ApiException, HTTPError) as error:
            if not self._output_fails:
                self.log.warning("the output of pod %s can't be read: %s", first.metadata.name, _brief(error))
            self._output_fails = True
            return
        self._output_fails = False
        for line in lines:
            self.log.info("%s", line)
            self.last_line = line

    def _show_progress(self, job: Json) -> None:
        told = (job.get("status") or {}).get("trainerStatus") or {}
        parts = [f"{metric['name']} {metric['value']}" for metric in told.get("metrics") or ()]
        if "estimatedRemainingSeconds" in told:
            parts.insert(0, f"about {told['estimatedRemainingSeconds']} s left")
        if "progressPercentage" in told:
            parts.insert(0, f"{told['progressPercentage']} % done")
        progress = ", ".join(parts)
        if progress and progress != self._progress:
            self.log.info("%s", progress)
        self._progress = progress

    @property
    def _place(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, str(self.namespace), PLURAL

    def _read(self) -> Json | None:
        try:
            found: Json = self._call(
                self.hook.custom_object_client.get_namespaced_custom_object, *self._place, self.name
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def _pods(self) -> list[V1Pod]:
        """Return the pods of all nodes, in their order."""
        selector = f"{_JOB_LABEL}={self.name},{_ROLE_LABEL}={CONTAINER}"
        found = self._call(self.hook.core_v1_client.list_namespaced_pod, self.namespace, label_selector=selector)
        return sorted(found.items, key=node_of)

    def _delete(self, job: Json, propagation: str) -> None:
        options = V1DeleteOptions(
            propagation_policy=propagation, preconditions=V1Preconditions(uid=job["metadata"]["uid"])
        )
        try:
            self.hook.custom_object_client.delete_namespaced_custom_object(
                *self._place, job["metadata"]["name"], body=options
            )
        except ApiException as error:
            if error.status not in (404, 409):  # gone, or another one of its name
                raise

    def _call(self, request: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Send a request, again while the API server is away."""
        retrying = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_delay(self.api_timeout_seconds),
            wait=wait_exponential(max=15),
            before_sleep=self._tell_about_retry,
            reraise=True,
        )
        return retrying(request, *args, **kwargs)

    def _tell_about_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self.log.warning("the API server is away, trying again: %s", _brief(error))


def _default_name(context: Context) -> str:
    instance = context["ti"]
    identity = (instance.dag_id, instance.run_id, instance.task_id, str(instance.map_index))
    digest = md5("\0".join(identity).encode(), usedforsecurity=False).hexdigest()[:10]
    spoken = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in instance.task_id.lower())
    return f"train-{spoken[: _MAX_NAME - 17].strip('-')}-{digest}"


def _labels_of(context: Context) -> dict[str, str]:
    """Return the labels that tell whose a TrainJob is: a task instance's, whatever its try."""
    instance = context["ti"]
    names = ("dag_id", "run_id", "task_id", *(("map_index",) if instance.map_index >= 0 else ()))
    return {name: make_safe_label_value(str(getattr(instance, name))) for name in names}


def _listed(words: Sequence[Any] | None) -> list[Any] | None:
    return None if words is None else list(words)


def _variables(env: Mapping[str, str] | Sequence[Any] | None) -> list[Any] | None:
    if isinstance(env, Mapping):
        return [{"name": name, "value": value} for name, value in env.items()]
    return _listed(env)


def _is_transient(error: BaseException) -> bool:
    return error.status in _TRANSIENT if isinstance(error, ApiException) else isinstance(error, HTTPError)


def _brief(error: BaseException | None) -> str:
    said = f"{error.status} {error.reason}" if isinstance(error, ApiException) and error.status else str(error)
    return " ".join(said.split())[:200]
