"""One task as a container, whatever runs it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.contract import ConfigurationError, StageRequest
from stillhouse.orchestration.airflow.containers import ContainerOperator
from stillhouse.orchestration.airflow.runtimes import operator_class
from stillhouse.orchestration.containers import ContainerTask, Ended, check_memory, operation_task, stage_task
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import DockerRuntime, LocalRuntime
from stillhouse.recipe import StageResources, load_recipe

URI = "s3://bucket/runs/r1/requests/t.json"
DOCKER = Deployment(
    store="s3://bucket", work=Path("/work"), runtime=DockerRuntime(image="task:1", gpu_image="task:1-gpu")
)


def request(recipe_file: Path, stage: str = "validate", **changes: Any) -> StageRequest:
    given = {"run_id": "toy__r1", "task_id": stage, "store": "file:///store", "parameters": {}}
    recipe = load_recipe(recipe_file).model_dump(mode="json")
    return StageRequest.model_validate({"stage": stage, "recipe": recipe, **given, **changes})


def change(recipe_file: Path, **sections: object) -> None:
    document = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump(document | sections))


def test_the_same_request_has_the_same_name_and_another_one_has_not(recipe_file: Path) -> None:
    first, again = (stage_task(request(recipe_file), URI, DOCKER) for _ in range(2))
    assert first == again
    assert first.name.startswith("stillhouse-validate-")
    others = {stage_task(request(recipe_file, **{field: "x"}), URI, DOCKER).name for field in ("run_id", "task_id")}
    assert len({first.name, *others}) == 3


def test_a_stage_is_told_where_its_request_lies(recipe_file: Path) -> None:
    task = stage_task(request(recipe_file), URI, DOCKER)
    assert task.command("py") == (
        *("py", "-m", "stillhouse.cli", "stage", "validate"),
        *("--request", URI, "--work", "/work"),
    )
    assert task.labels == {"run": "toy__r1", "task": "validate", "stage": "validate"}


def test_images_follow_the_accelerators_and_processes_need_none(recipe_file: Path) -> None:
    change(recipe_file, resources={"stages": {"teach": {"gpus": 1, "timeout_hours": 0.5}}})
    teach = stage_task(request(recipe_file, "teach"), URI, DOCKER)
    assert (teach.image, teach.timeout.total_seconds()) == ("task:1-gpu", 1800)
    assert stage_task(request(recipe_file), URI, DOCKER).image == "task:1"
    local = DOCKER.model_copy(update={"runtime": LocalRuntime()})
    assert stage_task(request(recipe_file), URI, local).image is None


def test_all_nodes_are_processes_of_one_machine_where_there_is_one(recipe_file: Path) -> None:
    change(recipe_file, resources={"stages": {"distill": {"processes": 2, "nodes": 3}}})
    command = stage_task(request(recipe_file, "distill", parameters={"arm": "kd"}), URI, DOCKER).command()
    assert command[:5] == ("python", "-m", "stillhouse.stages.torchrun", "--standalone", "--nproc-per-node=6")


def test_network_only_for_a_task_that_talks_to_a_server(recipe_file: Path) -> None:
    def talks(**changes: Any) -> bool:
        return stage_task(request(recipe_file, **changes), URI, DOCKER).network

    assert not talks()
    assert talks(store="s3://bucket")
    assert talks(tracking_uri="http://mlflow")
    document = yaml.safe_load(recipe_file.read_text())
    teacher = document["teacher"] | {"source": {"kind": "hub", "repo": "a/teacher", "revision": "a" * 40}}
    change(recipe_file, teacher=teacher)
    assert talks(stage="prepare-teacher")
    assert not talks()


@pytest.mark.parametrize(
    ("run_id", "label"),
    [
        ("toy__manual__2026-01-01T00:00:00+00:00", "toy__manual__2026-01-01T00-00-00-00-00"),
        ("x" * 80 + "-end", "x" * 59 + "-end"),
        ("-" + "y" * 62, "y" * 62),
    ],
)
def test_a_run_is_a_label_that_kubernetes_takes(recipe_file: Path, run_id: str, label: str) -> None:
    assert stage_task(request(recipe_file, run_id=run_id), URI, DOCKER).labels["run"] == label


def test_a_command_for_operators_is_a_task_of_its_run() -> None:
    arguments = ("rollback", "toy", "--reason=bad")
    first = operation_task(arguments, DOCKER, run_id="r1")
    assert first.name == operation_task(arguments, DOCKER, run_id="r1").name
    assert first.name != operation_task(arguments, DOCKER, run_id="r2").name
    assert first.name != operation_task(("rollback", "toy", "--reason=", "bad"), DOCKER, run_id="r1").name
    assert first.environment["STILLHOUSE_STORE"] == "s3://bucket"
    assert first.labels["stage"] == "rollback"
    assert first.network


@pytest.mark.parametrize(("limit", "had"), [(1.5, "its 1.5 GiB"), (None, "the memory of its machine")])
def test_lack_of_memory_names_the_field_to_raise(limit: float | None, had: str) -> None:
    task = ContainerTask(
        name="n",
        arguments=(),
        resources=StageResources(memory_gib=limit),
        labels={"run": "r", "task": "teach-3", "stage": "teach"},
    )
    message = rf"teach-3 ran out of {had}: raise resources\.stages\.teach\.memory_gib"
    with pytest.raises(ConfigurationError, match=message):
        check_memory(task, Ended(exit_code=137, out_of_memory=True))
    check_memory(task, Ended(exit_code=137))


@pytest.mark.parametrize(("code", "killed"), [(0, False), (75, False), (128, False), (-9, True), (137, True)])
def test_signals_are_told_apart_from_ends(code: int, killed: bool) -> None:
    assert Ended(exit_code=code).killed is killed


class Sweep(ContainerOperator):
    """Sweeps."""


def test_an_operator_is_what_runs_and_where() -> None:
    local = operator_class(Sweep, LocalRuntime())
    assert (local.__name__, local.__doc__, local.__module__) == ("LocalSweep", "Sweeps.", __name__)
    assert issubclass(local, Sweep)
    docker = operator_class(Sweep, DOCKER.runtime)
    assert docker.__name__ == "DockerSweep"
    assert docker.run_container is not local.run_container


def test_a_missing_provider_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stillhouse.orchestration.airflow.runtimes.docker", raising=False)
    monkeypatch.setitem(sys.modules, "airflow.providers.docker.operators.docker", None)
    with pytest.raises(ConfigurationError, match=r"runtime docker needs .*airflow\.providers\.docker"):
        operator_class(Sweep, DOCKER.runtime)
