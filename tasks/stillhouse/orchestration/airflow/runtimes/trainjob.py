"""Runtime ``trainjob``: stage ``distill`` as a TrainJob of Kubeflow Trainer v2, all others as pods.

The pods of a TrainJob are what the same task's pod would be: what can be patched into the deployment's
ClusterTrainingRuntime comes from there (``runtimePatches``). Only that runtime can say that pods never restart, get no
token, no variables for Services, and which priority they have; see ``infra/kubernetes/components/trainer``.

What training on several nodes needs (see `stillhouse.training`, `stillhouse.stages.ranks`):

- Every node fetches the stage's inputs from the store itself: so the store is S3, or a volume that all nodes see.
- The first process alone writes checkpoints, outputs and records, and every process reads the newest checkpoint when
  it starts. So the work folder lies on a volume that all nodes see and may write to. A work folder of a pod's own would
  be gone with the pod, while checkpoints that only the first node sees would have the others start from nothing.
- Nodes meet at the first one, by the ``PET_*`` variables that the Trainer sets and torchrun reads.
"""

from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from stillhouse.contract import ConfigurationError
from stillhouse.orchestration.airflow.runtimes.kubernetes import PodRun
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import TrainJobRuntime

if TYPE_CHECKING:
    from stillhouse.orchestration.airflow.runtimes.stage_train_job import StageTrainJob

STAGE = "distill"
"""The only one that may have several nodes."""


class TrainJobRun(PodRun):
    """Runs ``distill`` as a TrainJob, and any other task as a pod.

    The worker waits for a TrainJob also where the deployment is deferrable: Airflow's triggerer knows none.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._train_job: StageTrainJob | None = None

    def run_container(self, context: Context, task: ContainerTask, deployment: Deployment) -> Ended:
        """Run ``task`` to its end.

        Raises:
            ConfigurationError: Several nodes have no work folder in common, or as for a pod.
            TryAgain, NotPermitted: As for a pod.
            AirflowTaskTimeout: It took longer than the task may.
        """
        if task.labels["stage"] != STAGE:
            return super().run_container(context, task, deployment)
        # Loads the Kubernetes client.
        from stillhouse.orchestration.airflow.runtimes.stage_train_job import StageTrainJob

        check_volumes(task, deployment)
        self._train_job = StageTrainJob(container_task=task, deployment=deployment, task_id=self.task_id)
        return self._train_job.run_to_end(context)

    def on_kill(self) -> None:
        """Delete the pod or the TrainJob."""
        super().on_kill()
        if self._train_job is not None:
            self._train_job.on_kill()


def check_volumes(task: ContainerTask, deployment: Deployment) -> None:
    """Make sure that all nodes see one work folder.

    Raises:
        ConfigurationError: They don't.
    """
    assert isinstance(deployment.runtime, TrainJobRuntime)
    shared = [volume.target for volume in deployment.runtime.volumes if not volume.read_only]
    if task.resources.nodes > 1 and not any(deployment.work.is_relative_to(target) for target in shared):
        raise ConfigurationError(
            f"{task.labels['task']} wants {task.resources.nodes} nodes: a writable volume of runtime.volumes must hold "
            f"{deployment.work}, since all of them read its checkpoints"
        )
