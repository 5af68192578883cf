"""A real MLflow and a real ``airflow standalone`` on this machine: started, found again, waited for, stopped."""

import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from pydantic import ValidationError

from stillhouse.contract import TryAgain, pretty_json
from stillhouse.orchestration.quickstart.processes import ServerProcess
from stillhouse.orchestration.quickstart.settings import (
    LOOPBACK,
    RunFolder,
    airflow_environment,
    choose_port,
    mlflow_command,
    mlflow_environment,
)
from stillhouse.recipe import Config

logger = logging.getLogger(__name__)

SECONDS_TO_START = 300.0
SECONDS_BETWEEN_LOOKS = 0.25


class Servers(Config):
    """Two running servers."""

    airflow: ServerProcess
    mlflow: ServerProcess
    airflow_url: str
    mlflow_url: str
    owner: ServerProcess
    """The quickstart that stops them when it ends."""

    def alive(self) -> bool:
        """Tell whether both processes run."""
        return self.airflow.alive() and self.mlflow.alive()

    def stop(self) -> None:
        """Stop both, with everything that they started."""
        # `airflow standalone` takes its parts down on an interrupt, and only on that.
        self.airflow.stop(polite=signal.SIGINT)
        self.mlflow.stop()


def running_servers(folder: RunFolder) -> Servers | None:
    """Return the servers that an earlier quickstart started in ``folder`` and that still run.

    What a killed quickstart left half alive is stopped first.
    """
    try:
        servers = Servers.model_validate_json(folder.state_file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    if servers.alive():
        return servers
    servers.stop()
    folder.state_file.unlink(missing_ok=True)
    return None


def start_servers(folder: RunFolder, *, dags: Path) -> Servers:
    """Start both servers. They are not ready yet: see `wait_until_ready`.

    Raises:
        ConfigurationError: A port that the environment names is taken.
    """
    airflow_port, mlflow_port = choose_port("AIRFLOW_PORT", folder), choose_port("MLFLOW_PORT", folder)
    folder.create()
    folder.password()
    mlflow_url = f"http://{LOOPBACK}:{mlflow_port}"
    mlflow = ServerProcess.start(
        "MLflow",
        mlflow_command(folder, mlflow_port),
        environment=mlflow_environment(),
        log=folder.logs / "mlflow.log",
        folder=folder.mlflow_home,
    )
    airflow = ServerProcess.start(
        "Airflow",
        [sys.executable, "-m", "airflow", "standalone"],
        environment=airflow_environment(folder, dags=dags, port=airflow_port, tracking_uri=mlflow_url),
        log=folder.logs / "airflow.log",
        folder=folder.airflow_home,
    )
    servers = Servers(
        airflow=airflow,
        mlflow=mlflow,
        airflow_url=f"http://{LOOPBACK}:{airflow_port}",
        mlflow_url=mlflow_url,
        owner=ServerProcess.this(),
    )
    folder.state_file.write_bytes(pretty_json(servers))
    return servers


def adopt(servers: Servers, folder: RunFolder) -> bool:
    """Take over servers whose quickstart was killed; return whether they are ours now."""
    if servers.owner.alive():
        return False
    folder.state_file.write_bytes(pretty_json(servers.model_copy(update={"owner": ServerProcess.this()})))
    return True


def wait_until_ready(servers: Servers, folder: RunFolder, *, timeout: float = SECONDS_TO_START) -> None:
    """Wait until both servers answer and Airflow's parts are healthy.

    Raises:
        TryAgain: One of them ended, or is not ready in time; the message names its log.
    """
    checks: list[tuple[ServerProcess, Path, Callable[[], bool]]] = [
        (servers.mlflow, folder.logs / "mlflow.log", lambda: mlflow_is_healthy(servers.mlflow_url)),
        (servers.airflow, folder.logs / "airflow.log", lambda: airflow_is_healthy(servers.airflow_url)),
    ]
    deadline = time.monotonic() + timeout
    for process, log, is_healthy in checks:
        while not is_healthy():
            if not process.alive():
                raise TryAgain(f"{process.name} ended while it was starting; {log} says why")
            if time.monotonic() > deadline:
                raise TryAgain(f"{process.name} is not ready after {timeout:.0f} s; {log} says why")
            time.sleep(SECONDS_BETWEEN_LOOKS)


def mlflow_is_healthy(url: str) -> bool:
    """Tell whether an MLflow server answers at ``url``."""
    try:
        return httpx.get(f"{url}/health", timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def airflow_is_healthy(url: str) -> bool:
    """Tell whether Airflow answers at ``url`` and its scheduler and DAG processor work."""
    try:
        answer = httpx.get(f"{url}/api/v2/monitor/health", timeout=5.0)
        parts = answer.json() if answer.is_success else {}
    except (httpx.HTTPError, json.JSONDecodeError):
        return False
    return all(
        parts.get(part, {}).get("status") == "healthy" for part in ("metadatabase", "scheduler", "dag_processor")
    )
