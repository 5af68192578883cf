"""Settings of a deployment: from its file, from single variables, and what is wrong with them."""

from pathlib import Path

import pytest
import yaml

from stillhouse.contract import ConfigurationError
from stillhouse.orchestration.deployment import Deployment, runtime_from_environment
from stillhouse.orchestration.runtimes import DockerRuntime, LocalRuntime

SETTINGS = {"store": "s3://bucket", "work": "/work", "runtime": {"kind": "docker", "image": "stillhouse-task:1"}}


def environment(folder: Path, settings: object, **variables: str) -> dict[str, str]:
    file = folder / "deployment.yaml"
    file.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return {"STILLHOUSE_DEPLOYMENT": str(file), **variables}


def test_the_file_is_read(tmp_path: Path) -> None:
    deployment = Deployment.from_environment(environment(tmp_path, SETTINGS))
    assert (deployment.store, deployment.work, deployment.tracking_uri) == ("s3://bucket", Path("/work"), None)
    assert deployment.runtime == DockerRuntime(image="stillhouse-task:1")
    assert runtime_from_environment(environment(tmp_path, SETTINGS)) == deployment.runtime


def test_single_variables_go_first_and_empty_ones_do_not_count(tmp_path: Path) -> None:
    given = environment(
        tmp_path, SETTINGS, STILLHOUSE_STORE="file:///store", MLFLOW_TRACKING_URI="http://mlflow", STILLHOUSE_WORK=""
    )
    deployment = Deployment.from_environment(given)
    assert (deployment.store, deployment.work) == ("file:///store", Path("/work"))
    assert deployment.tracking_uri == "http://mlflow"


def test_without_a_file_tasks_are_processes() -> None:
    given = {"STILLHOUSE_STORE": "file:///store", "STILLHOUSE_WORK": "/work"}
    assert Deployment.from_environment(given).runtime == LocalRuntime()
    assert runtime_from_environment({}) == LocalRuntime()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"work": "/work"}, "set STILLHOUSE_STORE in"),
        ({}, "set STILLHOUSE_STORE and STILLHOUSE_WORK in"),
        (SETTINGS | {"stores": "s3://bucket"}, "stores"),
        (SETTINGS | {"runtime": {"kind": "docker"}}, "image"),
        (SETTINGS | {"runtime": {"kind": "dokcer"}}, "runtime"),
        (SETTINGS | {"runtime": {"kind": "local", "image": "stillhouse-task:1"}}, "image"),
        (SETTINGS | {"runtime": {"kind": "docker", "image": "two words"}}, "image"),
        ("- a list", "a mapping is needed"),
        ("store: [", "is no YAML"),
    ],
)
def test_what_is_wrong_is_named_on_one_line(tmp_path: Path, settings: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        Deployment.from_environment(environment(tmp_path, settings))
    assert "\n" not in str(refused.value)


def test_a_wrong_runtime_is_named_when_dags_are_parsed(tmp_path: Path) -> None:
    given = environment(tmp_path, SETTINGS | {"runtime": {"kind": "docker"}})
    with pytest.raises(ConfigurationError, match=r"runtime: .*image"):
        runtime_from_environment(given)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml can't be read: No such file"):
        runtime_from_environment({"STILLHOUSE_DEPLOYMENT": str(tmp_path / "nowhere.yaml")})
