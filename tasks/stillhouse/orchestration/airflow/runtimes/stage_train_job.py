"""A TrainJob that runs a container task."""

from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowTaskTimeout

from stillhouse.contract import ConfigurationError, ExitCode, StillhouseError, TryAgain
from stillhouse.orchestration.airflow.runtimes.pods import NO_IMAGE, NOT_CONFIGURED, pod_arguments, pod_resources
from stillhouse.orchestration.airflow.runtimes.stage_pod import POLL_SECONDS, SECONDS_TO_START, explained_errors
from stillhouse.orchestration.airflow.trainjob import (
    DEADLINE_EXCEEDED,
    TrainJobEnd,
    TrainJobNameTaken,
    TrainJobNotStarted,
    TrainJobOperator,
    TrainJobStillThere,
)
from stillhouse.orchestration.containers import PREFIX, ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import TrainJobRuntime

NODE = "node"
"""Container and replicated job of the ClusterTrainingRuntime that train; the Trainer demands these names."""


class StageTrainJob(TrainJobOperator):
    """The TrainJob of one container task. A helper of `TrainJobRun`, never in a DAG itself."""

    def __init__(self, *, container_task: ContainerTask, deployment: Deployment, **kwargs: Any) -> None:
        runtime = deployment.runtime
        assert isinstance(runtime, TrainJobRuntime)
        resources, pod = container_task.resources, pod_arguments(container_task, deployment)
        super().__init__(
            name=container_task.name,
            namespace=runtime.namespace,
            runtime_ref=runtime.training_runtime,
            image=container_task.image,
            command=container_task.command_per_node(),
            env=pod["env_vars"],
            num_nodes=resources.nodes,
            num_proc_per_node=resources.processes,
            resources_per_node=pod_resources(resources, nodes=1),
            runtime_patches=[pod_patch(pod)],
            labels=pod["labels"],
            queue_name=runtime.queue,
            active_deadline_seconds=int(container_task.timeout.total_seconds()),
            startup_timeout_seconds=SECONDS_TO_START,
            poll_interval=POLL_SECONDS,
            kubernetes_conn_id=None if runtime.config_file else runtime.connection_id,
            config_file=str(runtime.config_file) if runtime.config_file else None,
            in_cluster=True if runtime.connection_id is None and runtime.config_file is None else None,
            **kwargs,
        )

    def run_to_end(self, context: Context) -> Ended:
        """Run the task, or go on with the TrainJob of an earlier try."""
        try:
            with explained_errors():
                end = self.run_job(context)
        except TrainJobNotStarted as error:
            raise self._refusal(error) from None
        except TrainJobNameTaken as error:
            raise ConfigurationError(str(error)) from None
        except TrainJobStillThere as error:
            raise TryAgain(str(error)) from None
        if end.reason == DEADLINE_EXCEEDED:
            raise AirflowTaskTimeout(f"TrainJob {self.name} ran longer than the task may")
        return ended_of(end, self.last_line)

    def reports_earlier_failure(self, end: TrainJobEnd) -> bool:
        """Return true for an end that another try would only repeat."""
        ended = ended_of(end)
        return ended.out_of_memory or not (ended.killed or ended.exit_code == ExitCode.TRY_AGAIN)

    def _refusal(self, error: TrainJobNotStarted) -> StillhouseError:
        if error.reason in NO_IMAGE:
            why = f"image {self.image} can't be had ({error.reason}: {error.message})"
            return ConfigurationError(f"{why}: check runtime.image and image_pull_secrets")
        if error.reason in NOT_CONFIGURED:
            return ConfigurationError(f"{error}: check runtime.secrets")
        return TryAgain(str(error))


def pod_patch(pod: dict[str, Any]) -> dict[str, Any]:
    """Return what makes pods of a ClusterTrainingRuntime pods of ours.

    Args:
        pod: What ``KubernetesPodOperator`` is given; see `stillhouse.orchestration.airflow.runtimes.pods`.
    """
    node = {
        "name": NODE,
        "securityContext": pod["container_security_context"],
        "volumeMounts": pod["volume_mounts"],
    }
    spec = {
        "containers": [node],
        "volumes": pod["volumes"],
        "securityContext": pod["security_context"],
        "serviceAccountName": pod["service_account_name"],
        "nodeSelector": pod["node_selector"],
        "tolerations": pod["tolerations"],
        "imagePullSecrets": pod["image_pull_secrets"],
    }
    template = {
        "metadata": {"labels": pod["labels"]},
        "spec": {name: value for name, value in spec.items() if value},
    }
    job = {"name": NODE, "template": {"spec": {"template": template}}}
    return {
        "manager": f"{PREFIX}/airflow",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
    }


def ended_of(end: TrainJobEnd, last_line: str = "") -> Ended:
    """Return how the task of a TrainJob ended. One that is gone, or lost a machine, counts as killed."""
    code = ExitCode.KILLED if end.exit_code is None else end.exit_code
    return Ended(exit_code=code, out_of_memory=end.out_of_memory, last_line=last_line)
