"""What operators of every runtime have in common: they run a container task, and say how it ended."""

from airflow.sdk import BaseOperator, Context

from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment


class ContainerOperator(BaseOperator):
    """Base of what is run and of what runs it; see `stillhouse.orchestration.airflow.runtimes.operator_class`."""

    def run_container(self, context: Context, task: ContainerTask, deployment: Deployment) -> Ended:
        """Run ``task`` to its end with its output in the log, or go on with what an earlier try started.

        A try finds the container of an earlier one by its name. One that runs is followed; of one that ended, the end
        is returned, except where only another try can help: then it is removed and a new one started.

        Raises:
            TryAgain: Whoever runs containers is away.
            ConfigurationError: The image, or what the container needs, can't be had.
        """
        raise NotImplementedError
