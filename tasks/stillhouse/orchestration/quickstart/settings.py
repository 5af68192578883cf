"""Where the quickstart's servers listen and keep their state, and the environment that they run in."""

import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.contract import QUIET, ConfigurationError, pretty_json, sha256_of
from stillhouse.promotion.signing import SIGNING_KEY, generate_key

LOOPBACK = "127.0.0.1"
USER = "admin"
PRELOAD = """# Loads what every DAG file and task needs once, before Airflow forks: each then starts seconds earlier.
import sys

if {"scheduler", "dag-processor"} & set(sys.argv):
    import stillhouse.orchestration.airflow  # noqa: F401
"""
FOREIGN_SETTINGS = ("AIRFLOW__", "AIRFLOW_HOME", "AIRFLOW_CONFIG", "_AIRFLOW")
FIRST_PORT, NUM_PORTS = 20_000, 10_000


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder that holds everything a quickstart writes: servers' state, logs, results."""

    root: Path

    @property
    def airflow_home(self) -> Path:
        """Airflow's own folder: database, settings, task logs."""
        return self.root / "airflow"

    @property
    def mlflow_home(self) -> Path:
        """MLflow's database and artifacts."""
        return self.root / "mlflow"

    @property
    def logs(self) -> Path:
        """Output of the servers."""
        return self.root / "logs"

    @property
    def store(self) -> Path:
        """The object store."""
        return self.root / "store"

    @property
    def work(self) -> Path:
        """Checkpoints and other files that outlive a killed process."""
        return self.root / "work"

    @property
    def recipes(self) -> Path:
        """Links to recipes that lie outside of ``dags/recipes``."""
        return self.root / "recipes"

    @property
    def password_file(self) -> Path:
        """Generated password of the Airflow user, readable by its owner only."""
        return self.root / "airflow-passwords.json"

    @property
    def signing_key(self) -> Path:
        """Generated private key that signs what is promoted, readable by its owner only."""
        return self.root / "signing-key.pem"

    @property
    def state_file(self) -> Path:
        """Which servers run, for the next quickstart."""
        return self.root / "servers.json"

    def create(self) -> None:
        """Make the folders, for the owner's eyes only."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.airflow_home, self.mlflow_home, self.logs, self.store, self.work, self.recipes):
            folder.mkdir(exist_ok=True)
        if not self.signing_key.exists():
            generate_key(self.signing_key)
        settings = self.airflow_home / "config" / "airflow_local_settings.py"
        settings.parent.mkdir(exist_ok=True)
        settings.write_text(PRELOAD)

    def password(self) -> str:
        """Return the Airflow password, generated the first time."""
        if not self.password_file.exists():
            descriptor = os.open(self.password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pretty_json({USER: secrets.token_urlsafe(12)}))
        passwords: dict[str, str] = json.loads(self.password_file.read_bytes())
        return passwords[USER]


def choose_port(variable: str, folder: RunFolder, environment: Mapping[str, str] = os.environ) -> int:
    """Return the port that ``variable`` names, else the usual one of this run folder, else any free one.

    Each folder has usual ports of its own, so that addresses stay the same from run to run, and two quickstarts that
    start at the same moment don't take each other's servers for their own.

    Raises:
        ConfigurationError: The named port is no port, or is taken.
    """
    named = environment.get(variable)
    if named is None:
        usual = FIRST_PORT + int(sha256_of(f"{variable} {folder.root}".encode())[:8], 16) % NUM_PORTS
        return usual if port_is_free(usual) else free_port()
    if not named.isdecimal() or not 0 < int(named) < 65536:
        raise ConfigurationError(f"{variable} must be a port from 1 to 65535")
    if not port_is_free(int(named)):
        raise ConfigurationError(
            f"port {named} is taken; set {variable} to another one, or unset it to take any free one"
        )
    return int(named)


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on ``port`` of the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set it too: a connection in TIME_WAIT does not take the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def quiet_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment with this interpreter's commands first, and with nothing phoning home.

    Settings of another Airflow on this machine are left out: they would become this one's.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    inherited = {name: value for name, value in environment.items() if not name.startswith(FOREIGN_SETTINGS)}
    own = {"PATH": path, "SCARF_ANALYTICS": "false", "PYTHONUNBUFFERED": "1"}
    return {**QUIET, **inherited, **own}


def mlflow_command(folder: RunFolder, port: int) -> list[str]:
    """Return the command that serves MLflow from ``folder``."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder.mlflow_home / 'mlflow.db'}"]
    return [*command, "--artifacts-destination", str(folder.mlflow_home / "artifacts")]


def mlflow_environment() -> dict[str, str]:
    """Return the environment of the MLflow server."""
    return quiet_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def airflow_environment(folder: RunFolder, *, dags: Path, port: int, tracking_uri: str) -> dict[str, str]:
    """Return the environment of ``airflow standalone``: small, quick to react, on the loopback interface."""
    settings: dict[str, dict[str, object]] = {
        "core": {
            "dags_folder": dags,
            "load_examples": False,
            "executor": "LocalExecutor",
            "parallelism": 2,
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": folder.password_file,
            "min_serialized_dag_update_interval": 0,
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{folder.airflow_home / 'airflow.db'}"},
        "api": {"host": LOOPBACK, "port": port, "workers": 1, "base_url": f"http://{LOOPBACK}:{port}"},
        "dag_processor": {"parsing_processes": 1, "min_file_process_interval": 15, "refresh_interval": 15},
        "scheduler": {"scheduler_idle_sleep_time": 0.5, "enable_health_check": False},
        "logging": {"worker_log_server_port": free_port(), "trigger_log_server_port": free_port()},
        "usage_data_collection": {"enabled": False},
    }
    flat = {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section, values in settings.items()
        for name, value in values.items()
    }
    stillhouse = {
        "AIRFLOW_HOME": str(folder.airflow_home),
        "STILLHOUSE_STORE": f"file://{folder.store}",
        "STILLHOUSE_WORK": str(folder.work),
        SIGNING_KEY: os.environ.get(SIGNING_KEY, str(folder.signing_key)),
        "STILLHOUSE_RECIPES": str(folder.recipes),
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    return quiet_environment() | flat | stillhouse
