"""Runtime ``local``: a process of its own, on the machine of Airflow's worker."""

import os
import shlex
import sys
from typing import Any

from airflow.sdk import Context

from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.process import StageProcess


class LocalRun(ContainerOperator):
    """Runs a task with the interpreter that Airflow runs in. It dies with its worker: nothing is found again."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._process: StageProcess | None = None

    def run_container(self, context: Context, task: ContainerTask, deployment: Deployment) -> Ended:
        """Run ``task`` to its end."""
        command = local_command(task)
        self.log.info("starting: %s", shlex.join(command))
        last = ""

        def on_line(line: str) -> None:
            nonlocal last
            last = line
            self.log.info("%s", line)

        self._process = StageProcess(
            command,
            environment=inherited_environment() | dict(task.environment),
            memory_gib=task.resources.memory_gib,
        )
        return Ended(exit_code=self._process.follow(on_line), last_line=last)

    def on_kill(self) -> None:
        """Stop the process and its children."""
        if self._process is not None:
            self._process.stop()


def local_command(task: ContainerTask) -> tuple[str, ...]:
    """Return the command that runs ``task`` with this interpreter."""
    return task.command(sys.executable)


def inherited_environment() -> dict[str, str]:
    """Return this process's environment without Airflow's settings, which hold its credentials."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "_AIRFLOW"))}
    return kept | {"PYTHONUNBUFFERED": "1"}
