"""Runtime ``docker``: a hardened container of one Docker engine, found again after a worker was lost.

Of the provider's operator this uses the connection. What it passes to the engine is less than what a hardened container
needs, it waits for a container of its own making only, and it can unpickle what a container wrote; see
`stillhouse.orchestration.hardened` for the container.
"""

import os
import shlex
import time
from contextlib import closing
from typing import Any, NoReturn

from airflow.providers.docker.operators.docker import DockerOperator
from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.log import mask_secret
from docker import APIClient
from docker.errors import APIError, ImageNotFound, NotFound

from stillhouse.contract import ConfigurationError, ExitCode, NotPermitted, TryAgain
from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.docker_engine import (
    SECONDS_TO_ANSWER,
    Output,
    away,
    end_of,
    engine_errors,
    has_ended,
    inspect,
    remove,
    stop,
    wait_until_gone,
)
from stillhouse.orchestration.hardened import container_config, task_labels
from stillhouse.orchestration.runtimes import DockerRuntime

TAIL = 100
"""Lines that a try repeats of what a container wrote before, under an earlier one."""

POLL_SECONDS = 0.5
_TIMES_TO_CREATE = 40
_AGAIN = (ExitCode.TRY_AGAIN, ExitCode.INTERRUPTED)


class DockerRun(ContainerOperator, DockerOperator):
    """Runs a task as a container of the deployment's Docker engine."""

    template_fields = ()

    def __init__(self, **kwargs: Any) -> None:
        # Given here, neither a DAG nor its default arguments can turn it on.
        super().__init__(image="", retrieve_output=False, mount_tmp_dir=False, **kwargs)
        self.timeout = SECONDS_TO_ANSWER
        self._stopped = False

    def run_container(self, context: Context, task: ContainerTask, deployment: Deployment) -> Ended:
        """Run ``task`` to its end."""
        runtime = deployment.runtime
        assert isinstance(runtime, DockerRuntime)
        secrets = _secrets(runtime)
        self._connect(runtime.url)
        self.container_name = task.name
        with engine_errors(runtime.url, secrets=secrets.values()):
            output = self._open(task, deployment, secrets)
            last = self._follow(output)
            ended = end_of(last, last_line=output.last_line)
            if last is None:
                self.log.warning("container %s is gone: somebody removed it", task.name)
            else:
                remove(self.cli, last["Id"])
        return ended

    def on_kill(self) -> None:
        """Stop the container: SIGTERM, and SIGKILL if that does not help.

        Called from a signal handler, so it uses nothing that the interrupted code may hold.
        """
        self._stopped = True
        if self.container_name is None:
            return
        with (
            engine_errors(self.docker_url),
            closing(APIClient(base_url=self.docker_url, version="auto", timeout=SECONDS_TO_ANSWER)) as engine,
        ):
            stop(engine, self.container_name)

    def _connect(self, url: str) -> None:
        self.docker_url = url
        try:
            self.hook.get_conn()
        except (AirflowException, APIError):
            raise away(url) from None

    def _open(self, task: ContainerTask, deployment: Deployment, secrets: dict[str, str]) -> Output:
        """Return the output of the container of an earlier try, or of a new one, which runs or has ended."""
        for _ in range(_TIMES_TO_CREATE):
            if (found := self._found(task)) is not None:
                self.log.info("found container %s of an earlier try: %s", task.name, found["State"]["Status"])
                self._start(found["Id"])
                return Output(self.cli, found["Id"], tail=TAIL)
            if (made := self._create(task, deployment, secrets)) is not None:
                self._start(made)
                return Output(self.cli, made)
            # The name is taken a moment before its container can be seen.
            time.sleep(POLL_SECONDS)
        raise TryAgain(f"container {task.name} comes and goes: does another Airflow use this Docker engine?")

    def _found(self, task: ContainerTask) -> dict[str, Any] | None:
        """Return the container of an earlier try that is still worth something; remove one that is not."""
        container = inspect(self.cli, task.name)
        if container is None:
            return None
        labels = container["Config"]["Labels"] or {}
        if any(labels.get(name) != value for name, value in task_labels(task).items()):
            raise ConfigurationError(f"container {task.name} is not ours: its labels differ; remove it")
        if container["State"]["Status"] == "removing":
            wait_until_gone(self.cli, container["Id"])
            return None
        ended = end_of(container)
        if has_ended(container) and not ended.out_of_memory and (ended.exit_code in _AGAIN or ended.killed):
            self.log.info("removing container %s of an earlier try: exit code %d", task.name, ended.exit_code)
            remove(self.cli, container["Id"])
            return None
        return container

    def _create(self, task: ContainerTask, deployment: Deployment, secrets: dict[str, str]) -> str | None:
        """Return the id of a new container; None if somebody else was faster."""
        assert task.image is not None
        image = self._image(task.image)
        digest = next((name.partition("@")[2] for name in image["RepoDigests"] or ()), image["Id"])
        config = container_config(task, deployment, image=image["Id"], digest=digest, secrets=secrets)
        try:
            made: str = self.cli.create_container_from_config(config, name=task.name)["Id"]
        except APIError as error:
            if error.status_code == 409:
                return None
            raise
        self.log.info("starting container %s of image %s: %s", task.name, task.image, shlex.join(task.command()))
        return made

    def _image(self, name: str) -> dict[str, Any]:
        try:
            image: dict[str, Any] = self.cli.inspect_image(name)
        except ImageNotFound:
            raise ConfigurationError(
                f"image {name} is not in the Docker engine at {self.docker_url}: pull or build it there, or set "
                "runtime.image and runtime.gpu_image in the deployment's file to what is"
            ) from None
        return image

    def _start(self, container: str) -> None:
        """Start what is not running. One that can't start is removed."""
        now = inspect(self.cli, container)
        if now is None or now["State"]["Status"] != "created":
            return
        try:
            self.cli.start(container)
        except NotFound as error:
            if inspect(self.cli, container) is not None:
                remove(self.cli, container)
                raise ConfigurationError(f"container {self.container_name} can't start: {error.explanation}") from None
        except APIError:
            remove(self.cli, container)
            raise
        if self._stopped:
            # It was not running yet when Airflow stopped this task.
            stop(self.cli, container)

    def _follow(self, output: Output) -> dict[str, Any] | None:
        """Show the output of a container to its end; return it then, or None if it is gone."""
        while True:
            try:
                for line in output.follow():
                    self.log.info("%s", line)
            except APIError as error:
                if error.status_code not in (404, 409):
                    raise
            container = inspect(self.cli, output.container)
            if container is None or has_ended(container):
                return container
            time.sleep(POLL_SECONDS)

    def _copy_from_docker(self, container_id: str, src: str) -> NoReturn:
        raise NotPermitted("what a container writes is never unpickled")


def _secrets(runtime: DockerRuntime) -> dict[str, str]:
    """Return the variables that are handed on, and see to it that Airflow shows none of their values."""
    missing = [name for name in runtime.secret_variables if not os.environ.get(name)]
    if missing:
        raise ConfigurationError(
            f"runtime.secret_variables names {', '.join(missing)}: not set in the environment of Airflow's worker"
        )
    secrets = {name: os.environ[name] for name in runtime.secret_variables}
    for value in secrets.values():
        # Not with its name: Airflow would then mask only what sounds secret to it.
        mask_secret(value)
    return secrets
