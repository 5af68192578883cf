"""The stack of ``infra/compose.yaml`` on a real Docker engine, under a project name and on ports of its own."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine import docker
from mlflow import MlflowClient
from servers import free_ports
from tiny import write_workflow

from stillhouse.contract import NotPermitted
from stillhouse.orchestration.quickstart.rest import AirflowClient

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
RECIPE = "tiny"
SECONDS_FOR_RUN = 1200


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack that is up."""

    project: str
    folder: Path
    airflow: str
    mlflow: str
    environment: dict[str, str]
    secrets: dict[str, str]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``infra/compose.sh``."""
        return run([str(ROOT / "infra" / "compose.sh"), *arguments], self.environment)

    def run_inside(self, service: str, *command: str) -> str:
        """Return what a command prints in the container of a service."""
        return docker("exec", f"{self.project}-{service}-1", *command, check=False)

    def of_project(self) -> dict[str, list[str]]:
        """Return what the engine has of this project."""
        listings = {
            "containers": ("ps", "--all", "--quiet", "--filter", f"name={self.project}"),
            "volumes": ("volume", "ls", "--quiet", "--filter", f"name={self.project}"),
            "networks": ("network", "ls", "--quiet", "--filter", f"name={self.project}"),
        }
        return {kind: docker(*listing).split() for kind, listing in listings.items()}


def put_recipe(recipes: Path) -> None:
    """Add a small recipe, with data and teacher below it, as a user would."""
    (recipes / RECIPE).mkdir(parents=True)
    write_workflow(recipes / RECIPE, rows=300)
    (recipes / f"{RECIPE}.yaml").symlink_to(f"{RECIPE}/recipe.yaml")
    for path in recipes.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture(scope="module")
def stack(
    docker_engine: str, task_image: str, airflow_image: str, mlflow_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    project = f"stillhouse-test-{os.getpid()}"
    airflow, mlflow = free_ports(2)
    settings = {
        "COMPOSE_PROJECT_NAME": project,
        "STILLHOUSE_COMPOSE": str(folder),
        "AIRFLOW_PORT": str(airflow),
        "MLFLOW_PORT": str(mlflow),
        "STILLHOUSE_TASK_IMAGE": task_image,
        "STILLHOUSE_AIRFLOW_IMAGE": airflow_image,
        "STILLHOUSE_MLFLOW_IMAGE": mlflow_image,
    }
    # Where an authority of this machine's own stands before the package registry, stand-ins of images need it.
    environment = {**os.environ, **settings, "STILLHOUSE_CA": os.environ.get("PIP_CERT", "")}
    put_recipe(folder / "recipes")
    up = run([str(ROOT / "infra" / "compose.sh"), "up"], environment)
    lines = (folder / "secrets.env").read_text().splitlines() if (folder / "secrets.env").exists() else []
    made = Stack(
        project=project,
        folder=folder,
        airflow=f"http://127.0.0.1:{airflow}",
        mlflow=f"http://127.0.0.1:{mlflow}",
        environment=environment,
        secrets=dict(line.split("=", 1) for line in lines),
    )
    try:
        assert up.returncode == 0, f"{up.stderr[-3000:]}\n{made.command('logs', '--tail', '20').stdout[-10000:]}"
        yield made
    finally:
        down = made.command("down", "--volumes")
    assert down.returncode == 0, down.stderr
    assert made.of_project() == {"containers": [], "volumes": [], "networks": []}


def test_every_part_of_airflow_is_healthy(stack: Stack) -> None:
    parts = httpx.get(f"{stack.airflow}/api/v2/monitor/health", timeout=30).raise_for_status().json()

    assert {name: part["status"] for name, part in parts.items()} == dict.fromkeys(
        ("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy"
    )


def test_airflow_knows_its_people_and_nobody_else(stack: Stack) -> None:
    assert httpx.get(f"{stack.airflow}/api/v2/dags", timeout=30).status_code == 401
    with AirflowClient(stack.airflow, user="admin", password="admin") as guess, pytest.raises(NotPermitted):
        guess.log_in()
    with AirflowClient(stack.airflow, user="admin", password=stack.secrets["AIRFLOW_ADMIN_PASSWORD"]) as admin:
        admin.log_in()
        assert admin.import_errors() == []
        assert admin.parsed_at("quickstart") is not None
    with AirflowClient(stack.airflow, user="reviewer", password=stack.secrets["AIRFLOW_REVIEWER_PASSWORD"]) as reviewer:
        reviewer.log_in()


def mlflow_as(stack: Stack, user: str, password: str) -> httpx.Client:
    return httpx.Client(base_url=f"{stack.mlflow}/api/2.0/mlflow", auth=(user, password), timeout=60)


def test_mlflow_shows_nothing_to_those_who_were_not_let_in(stack: Stack) -> None:
    """Nobody gets 401; an account without permissions gets 403; what a task makes is the tasks'."""
    password = "a-visitor-of-this-test"
    assert httpx.post(f"{stack.mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 5}).status_code == 401
    with mlflow_as(stack, "admin", stack.secrets["MLFLOW_ADMIN_PASSWORD"]) as admin:
        made = admin.post("/users/create", json={"username": "visitor", "password": password})
        assert made.status_code == 200, made.text
    with mlflow_as(stack, "stillhouse", stack.secrets["MLFLOW_TASKS_PASSWORD"]) as tasks:
        experiment = (
            tasks.post("/experiments/create", json={"name": "of the tasks"}).raise_for_status().json()["experiment_id"]
        )
        assert tasks.get("/experiments/get", params={"experiment_id": experiment}).status_code == 200
        assert tasks.get("/users/get", params={"username": "visitor"}).status_code == 403
    with mlflow_as(stack, "visitor", password) as visitor:
        assert visitor.get("/experiments/get", params={"experiment_id": experiment}).status_code == 403
    with mlflow_as(stack, "visitor", "wrong") as stranger:
        assert stranger.get("/experiments/get", params={"experiment_id": experiment}).status_code == 401


LIST = """
import boto3, sys
from botocore.exceptions import ClientError
try:
    print(*(item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket=sys.argv[1]).get("Contents", [])))
except ClientError as error:
    print(error.response["Error"]["Code"])
"""


def listing(stack: Stack, image: str, account: str, bucket: str) -> str:
    """Return the keys that an account of the S3 server sees in a bucket, or the error that it gets."""
    options = [
        *("--rm", "--network", f"{stack.project}_inner", "--entrypoint", "python"),
        *("--volume", f"{stack.folder}/secrets/{account}:/credentials:ro"),
        *("--env", "AWS_SHARED_CREDENTIALS_FILE=/credentials", "--env", "AWS_DEFAULT_REGION=us-east-1"),
        *("--env", "AWS_ENDPOINT_URL_S3=http://s3:8333"),
    ]
    return docker("run", *options, image, "-c", LIST, bucket).strip()


def test_artifacts_go_through_mlflow_into_a_bucket_that_only_mlflow_opens(
    stack: Stack, airflow_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "stillhouse")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", stack.secrets["MLFLOW_TASKS_PASSWORD"])
    client = MlflowClient(stack.mlflow)
    run = client.create_run(client.create_experiment("artifacts")).info.run_id

    client.log_text(run, "a report", "report.txt")

    assert [item.path for item in client.list_artifacts(run)] == ["report.txt"]
    assert f"{run}/artifacts/report.txt" in listing(stack, airflow_image, "s3-mlflow", "mlflow")
    assert listing(stack, airflow_image, "s3-stillhouse", "mlflow") == "AccessDenied"
    assert listing(stack, airflow_image, "s3-mlflow", "stillhouse") == "AccessDenied"


ASK = """
import sys, urllib.error, urllib.request
for line in sys.argv[1:]:
    method, path = line.split()
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request("http://docker-proxy:2375" + path, method=method, data=body)
    request.add_header("Content-Type", "application/json")
    try:
        print(urllib.request.urlopen(request, timeout=20).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_the_scheduler_gets_no_more_of_the_engine_than_tasks_need(stack: Stack) -> None:
    wanted = {
        "GET /_ping": 200,
        "GET /v1.41/containers/json": 200,
        "POST /v1.41/containers/create?name=stillhouse-nothing": 400,  # the engine's answer: no command was given
        "POST /v1.41/containers/create?name=other": 403,
        "POST /v1.41/containers/create": 403,
        f"POST /v1.41/containers/{stack.project}-postgres-1/exec": 403,
        f"GET /v1.41/containers/{stack.project}-postgres-1/archive?path=/run/secrets": 403,
        "POST /v1.41/build": 403,
        "POST /v1.41/images/create?fromImage=x": 403,
        "GET /v1.41/volumes": 403,
        "POST /v1.41/volumes/create": 403,
        "POST /v1.41/networks/create": 403,
    }

    answers = stack.run_inside("airflow-scheduler", "python", "-c", ASK, *wanted).split()

    assert dict(zip(wanted, map(int, answers), strict=True)) == wanted


def test_a_recipe_runs_in_containers_from_its_data_to_its_promotion(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AirflowClient(stack.airflow, user="reviewer", password=stack.secrets["AIRFLOW_REVIEWER_PASSWORD"]) as client:
        client.log_in()
        wait_until(lambda: client.parsed_at(RECIPE) is not None)
        client.unpause(RECIPE)
        client.trigger(RECIPE, "first", {})
        wait_until(lambda: client.run_state(RECIPE, "first") in ("success", "failed"))
        tasks = {(task.task_id, task.map_index): task.state for task in client.tasks(RECIPE, "first")}

    assert set(tasks.values()) == {"success"}, tasks
    assert {("teach", 0), ("teach", 1), ("approve", -1), ("announce", -1)} < set(tasks)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "stillhouse")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", stack.secrets["MLFLOW_TASKS_PASSWORD"])
    assert MlflowClient(stack.mlflow).get_model_version_by_alias("tiny-student", "champion").version == "1"
    assert (
        docker(
            "ps", "--all", "--quiet", "--filter", f"network={stack.project}_tasks", "--filter", "label=stillhouse.run"
        )
        == ""
    )


def wait_until(true: Callable[[], bool]) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + SECONDS_FOR_RUN
    while not true():
        assert time.monotonic() < deadline, f"not in {SECONDS_FOR_RUN} s"
        time.sleep(1)


def inspected(stack: Stack) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(docker("inspect", *stack.of_project()["containers"]))
    return found


def test_containers_are_as_hardened_as_the_file_says(stack: Stack) -> None:
    for container in inspected(stack):
        host = container["HostConfig"]
        published = [binding["HostIp"] for bindings in (host["PortBindings"] or {}).values() for binding in bindings]
        assert set(published) <= {"127.0.0.1"}
        assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
    for service in ("postgres", "s3", "mlflow", "airflow-api-server", "airflow-scheduler", "docker-proxy"):
        status = stack.run_inside(service, "cat", "/proc/1/status")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert int(facts["Uid"].split()[0]) > 0, service
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0, service
        assert facts["NoNewPrivs"] == "1", service


def test_no_secret_shows_where_people_and_programs_look(stack: Stack) -> None:
    logs = stack.command("logs", "--no-color").stdout
    places = {
        "logs": logs,
        "settings of containers": json.dumps(inspected(stack)),
        "logs of tasks": stack.run_inside("airflow-scheduler", "grep", "-rhs", "", "/opt/airflow/logs"),
        "databases": stack.run_inside("postgres", "pg_dumpall", "--username=postgres"),
    }

    assert len(logs) > 1000
    assert "starting container" in places["logs of tasks"]
    assert "CREATE DATABASE mlflow" in places["databases"]
    for place, text in places.items():
        assert [name for name, value in stack.secrets.items() if value in text] == [], place


def test_plain_compose_refuses_what_nobody_set(stack: Stack) -> None:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    program = ROOT / ".run" / "docker-compose"
    command = [str(program)] if program.exists() else ["docker", "compose"]

    done = run([*command, "--file", str(ROOT / "infra" / "compose.yaml"), "config"], keep)

    assert done.returncode != 0
    assert "run infra/compose.sh" in done.stderr


def test_a_stack_whose_secrets_are_lost_is_left_alone(stack: Stack) -> None:
    """Other secrets than those that the databases were made with would only break it."""
    lost = stack.folder / "secrets.env"
    kept = lost.rename(stack.folder / "kept.env")
    try:
        done = stack.command("up")
    finally:
        kept.rename(lost)

    assert done.returncode == 78
    assert "put secrets.env back" in done.stderr
