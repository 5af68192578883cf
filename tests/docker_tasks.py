"""Container tasks of known behaviour on a real engine, and an operator whose log can be waited for."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest
from docker import APIClient

from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.airflow.runtimes import operator_class
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import DockerRuntime, Volume
from stillhouse.recipe import StageResources

FAKE = Path(__file__).parent / "docker" / "fake"


class Told:
    """A log that can be waited for."""

    def __init__(self) -> None:
        self.queue: Queue[str | BaseException] = Queue()
        self.lines: list[str] = []
        self.on_line: Callable[[str], None] = lambda line: None

    def info(self, text: str, *values: object) -> None:
        line = text % values if values else text
        self.lines.append(line)
        self.queue.put(line)
        self.on_line(line)

    debug = warning = error = info

    def wait_for(self, part: str) -> None:
        """Return when a line with ``part`` was written. Fails if the task ends before that."""
        while True:
            line = self.queue.get(timeout=60)
            if isinstance(line, BaseException):
                raise line
            if part in line:
                return


class Probe(ContainerOperator):
    """Only runs."""

    log: Any = None


@dataclass
class House:
    """A deployment on the engine, with a work folder of its own."""

    engine: APIClient
    runtime: DockerRuntime
    work: Path
    name: str

    def deployment(self, **changes: Any) -> Deployment:
        return Deployment(store="s3://nowhere", work=Path("/work"), runtime=self.runtime.model_copy(update=changes))

    def operator(self) -> Any:
        operator = operator_class(Probe, self.runtime)(task_id="probe")
        operator.log = Told()
        return operator

    def task(self, *arguments: str, network: bool = False, **resources: Any) -> ContainerTask:
        return ContainerTask(
            name=self.name,
            arguments=arguments,
            image=self.runtime.image,
            network=network,
            resources=StageResources(**resources),
            labels={"run": "r1", "task": self.name, "stage": "validate"},
        )

    def run(self, task: ContainerTask, operator: Any = None, **changes: Any) -> Ended:
        operator = operator or self.operator()
        try:
            ended: Ended = operator.run_container({}, task, self.deployment(**changes))
        except BaseException as error:
            operator.log.queue.put(error)
            raise
        operator.log.queue.put(AssertionError(f"it ended: {ended}"))
        return ended

    def leave_behind(self, task: ContainerTask) -> str:
        """Start ``task`` as a worker does that is lost right after that; return the container's id."""
        operator = self.operator()
        operator._connect(self.runtime.url)
        container: str = operator._open(task, self.deployment(), {}).container
        return container

    def containers(self) -> list[str]:
        found = self.engine.containers(all=True, filters={"label": f"stillhouse.task={self.name}"})
        return [container["Id"] for container in found]

    def let_go(self) -> None:
        (self.work / "go").write_text("")


@pytest.fixture
def house(docker_engine: str, task_image: str, tmp_path: Path) -> Iterator[House]:
    """Return a deployment whose image has `fake` in place of the command. What is left behind is removed."""
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    runtime = DockerRuntime(
        image=task_image,
        url=docker_engine,
        environment={"PYTHONPATH": "/opt/fake", "PLAIN": "plain"},
        volumes=(
            Volume(source=str(FAKE), target="/opt/fake"),
            Volume(source=str(work), target="/work", read_only=False),
        ),
    )
    with closing(APIClient(base_url=docker_engine, version="auto")) as engine:
        house = House(engine=engine, runtime=runtime, work=work, name=f"stillhouse-test-{uuid4().hex[:12]}")
        try:
            yield house
        finally:
            for container in house.containers():
                engine.remove_container(container, force=True, v=True)
