"""Runtime ``kubernetes``: each task is a pod."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment

if TYPE_CHECKING:
    from stillhouse.orchestration.airflow.runtimes.stage_pod import StagePod

_PROVIDER = "airflow.providers.cncf.kubernetes"

if find_spec(_PROVIDER) is None:
    raise ModuleNotFoundError(f"No module named {_PROVIDER!r}", name=_PROVIDER)


class PodRun(ContainerOperator):
    """Runs a task as a pod.

    The worker waits for it, or Airflow's triggerer where the deployment says so (``runtime.deferrable``). Either finds
    the pod again after it was lost.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pod: StagePod | None = None
        self._event: dict[str, Any] | None = None

    def run_container(self, context: Context, task: ContainerTask, deployment: Deployment) -> Ended:
        """Run ``task`` to its end.

        Raises:
            TryAgain: The API server is away, or has no room for the pod; the pod did not start.
            ConfigurationError: The image, a Secret, or what the pod needs else can't be had.
            NotPermitted: The API server does not let Airflow do this.
            TaskDeferred: The triggerer waits from now on.
            AirflowTaskTimeout: It took longer than the task may, as the triggerer saw it.
        """
        # Loads the Kubernetes client: seconds of work, which whoever only parses DAGs is spared.
        from stillhouse.orchestration.airflow.runtimes.stage_pod import StagePod, explained_errors

        self._pod = StagePod(
            container_task=task,
            deployment=deployment,
            task_id=self.task_id,
            execution_timeout=self.execution_timeout,
        )
        with explained_errors():
            return self._pod.run_to_end(context, self._event)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on when the triggerer has seen the pod end: what came before is done again, and leads to the same pod."""
        self._event = event
        return self.execute(context)

    def on_kill(self) -> None:
        """Delete the pod."""
        if self._pod is not None:
            self._pod.on_kill()
