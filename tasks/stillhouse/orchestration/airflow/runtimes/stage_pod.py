"""The pod of a container task, on Airflow's `KubernetesPodOperator`: started or found again, followed, removed.

The pod's name follows from what it is asked to do. A try that begins after the worker, or all of Airflow, was lost
finds the pod of the try before by that name, even if the loss came between creating it and writing that down. Three
things of the provider's operator are not used: its search by labels, its XCom sidecar, and its idea of success, by
which a pod that vanished may have succeeded (airflow#73117). What a task did is in the store, and is verified there.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.utils.pod_manager import PodLaunchFailedException, PodLaunchTimeoutException
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowTaskTimeout
from kubernetes.client import ApiException, CoreV1Api
from kubernetes.client import models as k8s
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from stillhouse.contract import ConfigurationError, ExitCode, NotPermitted, StillhouseError, TryAgain
from stillhouse.orchestration.airflow.runtimes.pods import (
    CONTAINER,
    NO_IMAGE,
    NOT_CONFIGURED,
    end_of_pod,
    has_ended,
    pod_arguments,
    pod_labels,
    still_runs,
    why_waiting,
)
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import PodRuntime

SECONDS_TO_START = 900
"""From a node to a running container: above all, to pull the image."""

SECONDS_TO_GO = 120
"""For a pod that is being deleted; it may use 30 of them to finish what it does."""

POLL_SECONDS = 2
SHOW_SECONDS = 60
"""While Airflow's triggerer waits: how often it shows what the pod has written."""

_YEARS = 10 * 365 * 24 * 3600


class StagePod(KubernetesPodOperator):
    """The pod of one container task. `PodRun` uses it; it is in no DAG itself.

    Args:
        container_task: What runs in the pod.
        deployment: With a runtime of pods.
        **kwargs: Of every operator.
    """

    def __init__(self, *, container_task: ContainerTask, deployment: Deployment, **kwargs: Any) -> None:
        runtime = deployment.runtime
        assert isinstance(runtime, PodRuntime)
        config_file = str(runtime.config_file) if runtime.config_file else None
        super().__init__(
            **pod_arguments(container_task, deployment),
            kubernetes_conn_id=None if config_file else runtime.connection_id,
            config_file=config_file,
            in_cluster=True if runtime.connection_id is None and config_file is None else None,
            deferrable=runtime.deferrable,
            poll_interval=POLL_SECONDS,
            logging_interval=SHOW_SECONDS,
            startup_check_interval_seconds=POLL_SECONDS,
            startup_timeout_seconds=SECONDS_TO_START,
            # A cluster that is full, or where others go first, is no failure.
            schedule_timeout_seconds=int(container_task.timeout.total_seconds()),
            log_formatter=self._remember_line,
            **kwargs,
        )
        self.container_task = container_task
        self._last_line = ""

    def run_to_end(self, context: Context, event: dict[str, Any] | None) -> Ended:
        """Run the task, or go on with the pod of an earlier try.

        Args:
            context: Of the Airflow task.
            event: What the triggerer saw, if it waited.
        """
        self.pod = self._found(event)
        if self.pod is None and event is None:
            self.pod = self._create(context)
        since = event.get("last_log_time") if event else None
        if self.pod is not None and still_runs(self.pod):
            if event is not None:
                self._consider(event)
            if self.deferrable:
                self.invoke_defer_method(since, context)
        if self.pod is not None:
            self.pod = self._follow(self.pod, since)
        if self.pod is None:
            self.log.warning("pod %s is gone", self.name)
            return end_of_pod(None)
        ended = end_of_pod(self.pod)
        self.pod_manager.delete_pod(self.pod)
        return Ended(exit_code=ended.exit_code, out_of_memory=ended.out_of_memory, last_line=self._last_line)

    def on_kill(self) -> None:
        """Delete the pod. Called from a signal handler, so with a client that the interrupted code can't hold."""
        self.client = CoreV1Api(self.hook.get_conn())
        super().on_kill()

    def _found(self, event: dict[str, Any] | None) -> k8s.V1Pod | None:
        """Return the pod of an earlier try, or of this one before the triggerer waited.

        One that only another try can help is removed, unless its end is just what the triggerer waited for.
        """
        pod = self._read()
        if pod is None:
            return None
        self._check_labels(pod)
        ended = end_of_pod(pod) if has_ended(pod) else None
        hopeless = ended is not None and (
            ended.exit_code == ExitCode.TRY_AGAIN or (ended.killed and not ended.out_of_memory)
        )
        if event is None and (hopeless or pod.metadata.deletion_timestamp):
            self.log.info("removing pod %s of an earlier try", self.name)
            self._remove(pod)
            return None
        self.log.info("found pod %s: %s", self.name, pod.status.phase)
        return pod

    def _create(self, context: Context) -> k8s.V1Pod:
        wanted = self.build_pod_request_obj(context)
        try:
            pod = self.client.create_namespaced_pod(namespace=self.namespace, body=wanted)
        except ApiException as error:
            # A try that is believed to be dead may live, and have been faster; or the answer to a request was lost.
            if error.status != 409 or (pod := self._read()) is None:
                raise
            self._check_labels(pod)
        if self._killed:
            # It was not there yet when Airflow stopped this task.
            self.pod_manager.delete_pod(pod)
        self.log.info("pod %s runs image %s", self.name, self.image)
        return pod

    def _check_labels(self, pod: k8s.V1Pod) -> None:
        labels = pod.metadata.labels or {}
        if any(labels.get(name) != value for name, value in pod_labels(self.container_task).items()):
            raise ConfigurationError(f"pod {self.name} in namespace {self.namespace} is somebody else's; delete it")

    def _follow(self, pod: k8s.V1Pod, since: Any) -> k8s.V1Pod | None:
        """Show the output of ``pod`` until it ends; return it then, or None if it is gone."""
        try:
            if has_ended(pod):
                self._show(pod, since)
                return pod
            self.await_pod_start(pod)
            self.await_pod_completion(pod)
            return self.pod_manager.await_pod_completion(pod, container_name=CONTAINER)
        except (PodLaunchFailedException, PodLaunchTimeoutException):
            now = self._read()
            if now is None or has_ended(now):
                return now
            raise self._refused(now) from None
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _show(self, pod: k8s.V1Pod, since: Any) -> None:
        """Show what a pod that has ended wrote, however long ago."""
        try:
            self.pod_manager.fetch_container_logs(
                pod, CONTAINER, since_time=since, post_termination_timeout=_YEARS, log_formatter=self._remember_line
            )
        except ApiException as error:
            self.log.warning("the output of pod %s can't be read: %s", self.name, _message(error))

    def _consider(self, event: dict[str, Any]) -> None:
        """Give up on a pod that still runs if the triggerer did, for good reason."""
        assert self.pod is not None
        if event["status"] == "timeout":
            if self.pod.status.phase == "Pending":
                raise self._refused(self.pod)
            self.pod_manager.delete_pod(self.pod)
            raise AirflowTaskTimeout(f"pod {self.name} ran longer than the task may")
        times = event.get("_redefer_count", 0)
        if times == self.MAX_REDEFER_ATTEMPTS:
            raise TryAgain(f"the triggerer can't watch pod {self.name}: {event.get('message')}")
        self.trigger_kwargs = {"_redefer_count": times + 1}

    def _refused(self, pod: k8s.V1Pod) -> StillhouseError:
        """Delete a pod that does not start, and return why."""
        reason, message = why_waiting(pod)
        self.pod_manager.delete_pod(pod)
        if reason in NO_IMAGE:
            return ConfigurationError(
                f"image {self.image} can't be had ({reason}: {message}): check runtime.image and image_pull_secrets"
            )
        if reason in NOT_CONFIGURED:
            return ConfigurationError(f"pod {self.name} can't start ({message}): check runtime.secrets")
        return TryAgain(f"pod {self.name} did not start ({reason}: {message})")

    def _remove(self, pod: k8s.V1Pod) -> None:
        """Delete ``pod`` and wait until its name is free."""
        self.pod_manager.delete_pod(pod)
        deadline = time.monotonic() + SECONDS_TO_GO
        while (now := self._read()) is not None and now.metadata.uid == pod.metadata.uid:
            if time.monotonic() > deadline:
                raise TryAgain(f"pod {self.name} of an earlier try is still being deleted; is its node there?")
            time.sleep(POLL_SECONDS / 4)

    def _read(self) -> k8s.V1Pod | None:
        try:
            return self.hook.get_pod(self.name, self.namespace)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _remember_line(self, container: str, message: str) -> str:
        text = message.rstrip("\n")
        self._last_line = text.rpartition("\n")[2]
        return text


@contextmanager
def explained_errors() -> Iterator[None]:
    """Turn what the API server and its client say into our errors.

    Raises:
        TryAgain: The API server is away, or has no room.
        NotPermitted: It does not know Airflow, or does not let it do this.
        ConfigurationError: Airflow has no access, or what it asks for is wrong.
    """
    try:
        yield
    except (ConfigException, AirflowNotFoundException) as error:
        raise ConfigurationError(f"no access to Kubernetes: {error}; check runtime.connection_id") from error
    except (HTTPError, KubernetesApiException) as error:
        raise TryAgain(f"the Kubernetes API server is away: {type(error).__name__}") from error
    except ApiException as error:
        message = f"the Kubernetes API server says {error.status}: {_message(error)}"
        # A conflict ends when the other one is gone, and an exceeded quota when another pod is.
        if not error.status or error.status >= 500 or error.status in (409, 429) or "exceeded quota" in message:
            raise TryAgain(message) from error
        raise (NotPermitted if error.status in (401, 403) else ConfigurationError)(message) from error


def _message(error: ApiException) -> str:
    """Return what the API server says in its answer, as one line."""
    try:
        said = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        said = str(error.reason)
    return " ".join(said.split())
