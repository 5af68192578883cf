"""The images as they run in production: without rights, writable places or secrets, and known by content."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from engine import ROOT, docker, run_hardened

from stillhouse.contract import ResultRef, StageRequest, pretty_json
from stillhouse.recipe import load_recipe
from stillhouse.stages.records import read_result
from stillhouse.store import verify_artifact

pytestmark = pytest.mark.docker

IMAGES = ("task", "airflow", "mlflow")
NOT_FOR_AIRFLOW = {"torch", "transformers", "mlflow", "mlflow-skinny", "great-expectations", "datasets", "pandas"}

LIST_DISTRIBUTIONS = """
from importlib.metadata import distributions
print(*sorted({d.name.lower() for d in distributions()}))
"""
PARSE_DAGS = """
import importlib, pathlib, pkgutil, runpy
import stillhouse.orchestration.airflow as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
for file in pathlib.Path("/opt/stillhouse/dags").glob("*.py"):
    print(*(name for name, dag in runpy.run_path(str(file)).items() if type(dag).__name__ == "DAG"))
"""
IMPORT_SERVER = "import boto3, psycopg2, mlflow.server, flask_wtf; print(mlflow.__version__)"

KNOWN = "Builds of torch that no index has may lie in /wheels."
"""Words of docker/install.sh, which the stage that installs does hold."""


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    """Return the tag of each image in turn."""
    tag: str = request.getfixturevalue(f"{request.param}_image")
    return tag


@pytest.fixture(scope="session")
def build_client(docker_engine: str) -> str:
    """Return a Docker client that can build with BuildKit."""
    for client in filter(None, (shutil.which("docker"), shutil.which("docker", path="/usr/bin"))):
        told = subprocess.run([client, "build", "--help"], capture_output=True, text=True, env=_buildkit(), check=False)
        if "--secret" in told.stdout:
            return client
    pytest.fail("no Docker client here builds with BuildKit", pytrace=False)


def _buildkit() -> dict[str, str]:
    return os.environ | {"DOCKER_BUILDKIT": "1"}


def _build(client: str, *arguments: str, dockerfile: str | None = None) -> None:
    done = subprocess.run(
        [client, "build", "--progress", "plain", *arguments, str(ROOT)],
        input=dockerfile,
        capture_output=True,
        text=True,
        env=_buildkit(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _inspect(image: str) -> dict[str, Any]:
    (told,) = json.loads(docker("image", "inspect", image))
    return dict(told)


def test_nobody_is_root(image: str) -> None:
    assert run_hardened(image, "id") == "uid=10001(stillhouse) gid=10001(stillhouse) groups=10001(stillhouse)\n"
    assert _inspect(image)["Config"]["User"] == "10001:10001"


def test_the_user_owns_next_to_nothing_of_the_image(image: str) -> None:
    # Without --read-only, under which nothing at all can be written.
    places = ("/", "-xdev", "-writable", "-not", "-type", "l")
    free = docker("run", "--rm", "--network", "none", "--entrypoint", "find", image, *places, check=False)
    assert "/tmp" in free.split()
    own = {"/work", "/run/stillhouse", "/opt/airflow", "/opt/airflow/logs", "/opt/airflow/airflow.cfg"}
    shared = {"/tmp", "/var/tmp", "/run/lock"}
    assert set(free.split()) <= own | shared


def test_labels_tell_release_and_commit(image: str) -> None:
    labels = _inspect(image)["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == version("stillhouse")
    commit = labels["org.opencontainers.image.revision"].removesuffix("-dirty")
    assert subprocess.run(["git", "cat-file", "-e", commit], cwd=ROOT, check=False).returncode == 0


def test_the_command_line_works_without_a_writable_root(task_image: str) -> None:
    printed = docker("run", "--rm", "--read-only", "--tmpfs", "/tmp", task_image, "--help")
    assert "quickstart" in printed


def test_a_stage_runs_without_rights_and_network(task_image: str, workflow: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    request = StageRequest(
        stage="validate",
        run_id="run-1",
        task_id="validate",
        recipe=load_recipe(workflow).model_dump(mode="json"),
        store=f"file://{store}",
    )
    store.mkdir()
    (tmp_path / "request.json").write_bytes(pretty_json(request))
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    store.chmod(0o777)
    printed = run_hardened(
        task_image,
        *("stillhouse", "stage", "validate", "--request", str(tmp_path / "request.json"), "--work", "/work"),
        options=("--volume", f"{tmp_path}:{tmp_path}:ro", "--volume", f"{store}:{store}", "--volume", "/work"),
    )
    result = read_result(ResultRef.model_validate_json(printed.splitlines()[-1]))
    assert "train" in result.outputs
    assert all(verify_artifact(artifact) for artifact in result.outputs.values())


def test_torch_in_the_task_image_computes(task_image: str) -> None:
    program = "import torch; print(torch.__version__, torch.linalg.det(2 * torch.eye(3)).item())"
    release, determinant = run_hardened(task_image, "python", "-c", program).split()
    assert release.split("+")[0] == version("torch").split("+")[0]
    assert float(determinant) == 8


def test_airflow_parses_the_dags_and_carries_no_torch(airflow_image: str) -> None:
    installed = set(run_hardened(airflow_image, "python", "-c", LIST_DISTRIBUTIONS).split())
    assert "apache-airflow" in installed
    assert not installed & NOT_FOR_AIRFLOW
    dags = set(run_hardened(airflow_image, "python", "-c", PARSE_DAGS).split())
    recipes = {path.stem for path in (ROOT / "dags/recipes").glob("*.yaml")}
    assert {name.replace("_", "-") for name in dags} >= recipes


def test_the_mlflow_server_has_what_it_needs(mlflow_image: str) -> None:
    assert run_hardened(mlflow_image, "python", "-c", IMPORT_SERVER).strip() == version("mlflow")


def test_the_bill_of_materials_lists_what_is_in_the_image(image: str, request: pytest.FixtureRequest) -> None:
    name = image.partition(":")[0].removeprefix("stillhouse-")
    bill = json.loads((ROOT / ".run/images" / f"{name}.cdx.json").read_text())
    told = {item["name"]: item["value"] for item in bill["metadata"]["component"]["properties"]}
    inspected = _inspect(image)
    assert told["stillhouse:image:id"] == inspected["Id"]
    assert told["stillhouse:image:bytes"] == str(inspected["Size"])
    listed = {component["name"].lower() for component in bill["components"]}
    installed = set(run_hardened(image, "python", "-c", LIST_DISTRIBUTIONS).split())
    assert installed <= listed
    assert "libc6" in listed
    assert ("torch" in listed) == (name == "task")


def test_a_secret_of_the_build_stays_out_of_the_image(build_client: str, tmp_path: Path) -> None:
    planted = secrets.token_hex(16)
    (tmp_path / "pip.conf").write_text(f"# {planted}\n[global]\n{_index()}")
    tag = f"stillhouse-planted:{planted[:8]}"
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    trusted = ("--secret", f"id=ca.pem,src={certificates}") if certificates else ()
    given = ("--secret", f"id=pip.conf,src={tmp_path / 'pip.conf'}", *trusted)
    # The stage in which everything was installed that needed them; the image itself takes only packages from there.
    _build(
        build_client,
        "--no-cache",
        "--target",
        "tools",
        "--file",
        f"{ROOT}/docker/task/Dockerfile",
        "--tag",
        tag,
        *given,
    )
    try:
        assert planted not in docker("image", "history", "--no-trunc", tag) + json.dumps(_inspect(tag))
        files = subprocess.Popen(["docker", "image", "save", tag], stdout=subprocess.PIPE)
        search = ["grep", "--text", "--only-matching", "-e", planted, "-e", KNOWN]
        found = subprocess.run(search, stdin=files.stdout, capture_output=True, text=True, check=False)
        assert files.wait() == 0
        assert set(found.stdout.split("\n")) == {KNOWN, ""}
    finally:
        docker("image", "rm", tag)


def _index() -> str:
    """Return pip's setting of where packages come from on this machine, if it has one."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    settings = dict(line.partition("=")[::2] for line in told.stdout.splitlines())
    index = settings.get(":env:.index-url") or settings.get("global.index-url")
    return "index-url = " + index.strip("'") + "\n" if index else ""


def test_builds_do_not_see_history_results_and_settings(build_client: str, tmp_path: Path) -> None:
    _build(build_client, "--file", "-", "--output", str(tmp_path), dockerfile="FROM scratch\nCOPY . /\n")
    sent = {path.name for path in tmp_path.iterdir()}
    assert sent == {"LICENSE", "README.md", "dags", "docker", "infra", "mlflow", "pyproject.toml", "tasks"}
    assert {path.name for path in (tmp_path / "infra").iterdir()} == {"locks"}
    assert not list(tmp_path.rglob("__pycache__"))
