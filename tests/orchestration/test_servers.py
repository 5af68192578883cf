import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from stillhouse.contract import ConfigurationError, NotPermitted
from stillhouse.orchestration.quickstart import (
    AirflowClient,
    RunFolder,
    ServerProcess,
    Servers,
    choose_port,
    running_servers,
    start_servers,
    wait_until_ready,
)
from stillhouse.orchestration.quickstart.servers import adopt
from stillhouse.orchestration.quickstart.settings import airflow_environment, mlflow_environment
from stillhouse.stages import read_records
from stillhouse.store import open_store

PARENT = (
    "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); {then}"
)


def start_process(tmp_path: Path, then: str = "time.sleep(600)") -> ServerProcess:
    return ServerProcess.start(
        "test",
        [sys.executable, "-c", PARENT.format(then=then)],
        environment=dict(os.environ),
        log=tmp_path / "log",
        folder=tmp_path,
    )


def group_of(process: ServerProcess) -> list[psutil.Process]:
    found = []
    for other in psutil.process_iter():
        try:
            if os.getpgid(other.pid) == process.pid and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_named_port_that_is_taken_is_said_clearly(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} is taken; set AIRFLOW_PORT"):
            choose_port("AIRFLOW_PORT", RunFolder(root=tmp_path), {"AIRFLOW_PORT": str(port)})


@pytest.mark.parametrize("port", ["0", "70000", "http", "-1"])
def test_named_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    with pytest.raises(ConfigurationError, match="MLFLOW_PORT"):
        choose_port("MLFLOW_PORT", RunFolder(root=tmp_path), {"MLFLOW_PORT": port})


def test_a_folder_keeps_its_port_until_somebody_takes_it(tmp_path: Path) -> None:
    folder = RunFolder(root=tmp_path)
    usual = choose_port("AIRFLOW_PORT", folder, {})

    assert choose_port("AIRFLOW_PORT", folder, {}) == usual
    assert choose_port("MLFLOW_PORT", folder, {}) != usual
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", usual))
        holder.listen()
        assert choose_port("AIRFLOW_PORT", folder, {}) != usual


def test_stop_ends_the_whole_family(tmp_path: Path) -> None:
    process = start_process(tmp_path)
    wait_for(lambda: len(group_of(process)) == 2)

    process.stop()

    assert not process.alive()
    assert group_of(process) == []


def test_stop_finds_children_of_a_dead_leader(tmp_path: Path) -> None:
    process = start_process(tmp_path, then="time.sleep(1)")
    wait_for(lambda: len(group_of(process)) == 2)
    wait_for(lambda: not process.alive())

    process.stop()

    wait_for(lambda: group_of(process) == [])


def test_another_process_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    process = start_process(tmp_path)
    try:
        stranger = process.model_copy(update={"born": process.born + 3600})
        assert not stranger.alive()
        stranger.stop()
        assert process.alive()
    finally:
        process.stop()


def servers_of(airflow: ServerProcess, mlflow: ServerProcess, owner: ServerProcess) -> Servers:
    return Servers(airflow=airflow, mlflow=mlflow, airflow_url="http://a", mlflow_url="http://m", owner=owner)


def test_half_dead_servers_of_a_killed_run_are_cleaned_away(tmp_path: Path) -> None:
    folder = RunFolder(root=tmp_path / "run")
    folder.create()
    alive, dead = start_process(tmp_path), start_process(tmp_path)
    dead.stop()
    folder.state_file.write_text(servers_of(alive, dead, dead).model_dump_json())

    assert running_servers(folder) is None
    assert not alive.alive()
    assert not folder.state_file.exists()


def test_servers_are_taken_over_only_from_a_dead_owner(tmp_path: Path) -> None:
    folder = RunFolder(root=tmp_path / "run")
    folder.create()
    server, owner = start_process(tmp_path), start_process(tmp_path)
    try:
        servers = servers_of(server, server, owner)
        assert not adopt(servers, folder)
        owner.stop()
        assert adopt(servers, folder)
        taken = running_servers(folder)
        assert taken is not None
        assert taken.owner == ServerProcess.this()
    finally:
        server.stop()


def test_password_is_kept_and_private(tmp_path: Path) -> None:
    folder = RunFolder(root=tmp_path / "run")
    folder.create()

    assert folder.password() == folder.password()
    assert stat.S_IMODE(folder.password_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700


def test_settings_of_another_airflow_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__UNIT_TEST_MODE", "True")
    monkeypatch.setenv("AIRFLOW_HOME", "/elsewhere")
    folder = RunFolder(root=tmp_path)
    airflow = airflow_environment(folder, dags=tmp_path, port=8080, tracking_uri="http://127.0.0.1:5000")
    assert "AIRFLOW__CORE__UNIT_TEST_MODE" not in airflow
    assert airflow["AIRFLOW_HOME"] == str(folder.airflow_home)


def test_servers_are_quiet_and_local(tmp_path: Path) -> None:
    folder = RunFolder(root=tmp_path)
    airflow = airflow_environment(folder, dags=tmp_path, port=8080, tracking_uri="http://127.0.0.1:5000")

    assert airflow["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert airflow["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] == "False"
    for environment in (airflow, mlflow_environment()):
        assert environment["DO_NOT_TRACK"] == "1"
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert mlflow_environment()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


@pytest.fixture
def behaviour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that tells fake stages how to behave."""
    file = tmp_path / "behaviour.json"
    file.write_text("{}")
    monkeypatch.setenv("FAKE_STAGE", str(file))
    for name in list(os.environ):
        if name.startswith("AIRFLOW"):
            monkeypatch.delenv(name)
    return file


@pytest.fixture
def servers(project: Path, behaviour: Path) -> Iterator[Servers]:
    """Yield a real MLflow and a real ``airflow standalone`` that run the toy project."""
    folder = RunFolder(root=project / ".run")
    started = start_servers(folder, dags=project / "dags")
    try:
        wait_until_ready(started, folder, timeout=600)
        yield started
    finally:
        started.stop()
        assert not started.alive()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_airflow_asks_obeys_and_retries_by_exit_code(project: Path, behaviour: Path, servers: Servers) -> None:
    folder = RunFolder(root=project / ".run")
    store = open_store(f"file://{folder.store}")
    with AirflowClient(servers.airflow_url, user="admin", password="wrong") as stranger, pytest.raises(NotPermitted):
        stranger.log_in()
    with AirflowClient(servers.airflow_url, user="admin", password=folder.password()) as client:
        client.log_in()
        wait_for(lambda: client.parsed_at("toy") is not None, 120)
        client.unpause("toy")

        def states(run_id: str) -> dict[str, tuple[str | None, int]]:
            return {task.task_id: (task.state, task.try_number) for task in client.tasks("toy", run_id)}

        def finish(run_id: str) -> str:
            try:
                wait_for(lambda: client.run_state("toy", run_id) in ("success", "failed"), 300)
            except AssertionError:
                pytest.fail(f"run {run_id} does not end: {states(run_id)}")
            return client.run_state("toy", run_id)

        def scheduler_heartbeat() -> str:
            health = httpx.get(f"{servers.airflow_url}/api/v2/monitor/health", timeout=60).json()
            return str(health["scheduler"]["latest_scheduler_heartbeat"])

        def answer(run_id: str, option: str) -> str:
            """Answer as a person would, seconds after the question.

            Airflow 3.3 takes the end of the asking process for a failure if the task goes on before its scheduler has
            seen that end, and asks again until no tries are left. Two heartbeats later the scheduler has seen it.
            """
            wait_for(lambda: states(run_id)["approve"][0] == "awaiting_input", 300)
            for _ in range(2):
                before = scheduler_heartbeat()
                wait_for(lambda: scheduler_heartbeat() != before, 60)  # noqa: B023
            client.answer("toy", run_id, "approve", option)
            return finish(run_id)

        with pytest.raises(ConfigurationError, match=r"distillation\.alpha"):
            client.trigger("toy", "bad", {"distillation.alpha": 1.5})
        assert client.unfinished_runs("toy") == []

        human = {"promotion.approval": "human"}
        behaviour.write_text(json.dumps({"distill-kd": {"kill": True, "times": 1}}))
        client.trigger("toy", "approved", human)
        wait_for(lambda: states("approved")["approve"][0] == "awaiting_input", 300)
        assert states("approved")["distill-kd"] == ("success", 2)
        assert states("approved")["promote"][0] is None
        question = client.question("toy", "approved", "approve")
        assert "# Promote?" in question["body"]
        assert answer("approved", "Approve") == "success"
        assert states("approved")["promote"][0] == "success"
        request = json.loads(store.get("runs/toy__approved/requests/promote.json"))
        approval = request["parameters"]["approval"]
        assert approval["by"] == "admin"
        assert approval["decision_sha256"] in question["body"]

        client.trigger("toy", "rejected", human)
        assert answer("rejected", "Reject") == "success"
        assert states("rejected")["promote"][0] == "skipped"
        assert read_records(store, "toy__rejected")["evaluate"].state == "reused"

        behaviour.write_text(json.dumps({"distill-sft": {"exit": 65}}))
        client.trigger("toy", "failed", {"training.seed": 1})
        assert finish("failed") == "failed"
        assert states("failed")["distill-sft"] == ("failed", 1)
        assert states("failed")["promote"][0] == "upstream_failed"
        assert states("failed")["announce"][0] == "success"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_interrupted_quickstart_leaves_nothing_running(project: Path, behaviour: Path) -> None:
    behaviour.write_text(json.dumps({"validate": {"sleep": 600}}))
    code = (
        "import sys; from pathlib import Path; from stillhouse.orchestration.quickstart import run_quickstart; "
        f"run_quickstart(Path({str(project / 'dags' / 'recipes' / 'toy.yaml')!r}), project=Path({str(project)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as quickstart:
        assert quickstart.stdout is not None
        for line in quickstart.stdout:
            if "validate: running" in line:
                break
        found = running_servers(RunFolder(root=project / ".run"))
        assert found is not None
        family = psutil.Process(found.airflow.pid).children(recursive=True)
        quickstart.send_signal(signal.SIGINT)
        assert quickstart.wait(120) != 0
    assert not found.airflow.alive()
    assert not found.mlflow.alive()
    _, left = psutil.wait_procs(family, timeout=30)
    assert left == []
