"""The stack of ``infra/compose.yaml``: what its files promise, and what it does when it is up."""

import importlib.util
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cryptography.fernet import Fernet

INFRA = Path(__file__).parents[2] / "infra"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}

each_service = pytest.mark.parametrize("service", [pytest.param(s, id=name) for name, s in SERVICES.items()])


@each_service
def test_a_container_has_few_rights(service: dict[str, Any]) -> None:
    uid = int(service["user"].partition(":")[0])
    assert uid > 0
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert not {"privileged", "cap_add", "devices", "pid", "ipc"} & set(service)
    assert service.get("network_mode", "none") == "none"


@each_service
def test_logs_are_limited(service: dict[str, Any]) -> None:
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}


@pytest.mark.parametrize("service", LASTING.values(), ids=LASTING.keys())
def test_a_server_has_a_health_check(service: dict[str, Any]) -> None:
    assert service["healthcheck"]["test"][0] == "CMD"


def test_ports_are_published_on_the_loopback_interface_only() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert set(ports) == {"airflow-api-server", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)


def test_only_the_proxy_has_the_engine_and_only_the_scheduler_has_the_proxy() -> None:
    def on(network: str) -> set[str]:
        return {name for name, service in SERVICES.items() if network in service.get("networks", [])}

    with_socket = {name for name, service in SERVICES.items() if "docker.sock" in str(service.get("volumes"))}
    assert with_socket == {"docker-proxy"}
    assert on("engine") == {"docker-proxy", "airflow-scheduler"}
    assert on("tasks") == {"s3", "mlflow"}
    assert SERVICES["postgres"]["networks"] == ["inner"]


def test_nothing_phones_home() -> None:
    assert "-master.telemetry=false" in SERVICES["s3"]["command"]
    for name in ("mlflow", "airflow-api-server", "airflow-scheduler"):
        environment = SERVICES[name]["environment"]
        assert environment["DO_NOT_TRACK"] == "1"
        assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert SERVICES["airflow-scheduler"]["environment"]["AIRFLOW__USAGE_DATA_COLLECTION__ENABLED"] == "False"


def test_secrets_are_files_and_have_no_defaults() -> None:
    """What has no default must say so: Compose takes a variable that nobody set for an empty string."""
    text = (INFRA / "compose.yaml").read_text()
    variables = re.findall(r"\$\{([A-Z_]+)([^}]*)\}", text)
    without_default = {name for name, rest in variables if not rest.startswith(":-")}

    assert all(rest.startswith((":-", ":?")) for _, rest in variables)
    assert "STILLHOUSE_COMPOSE" in without_default
    for secret in yaml.safe_load(text)["secrets"].values():
        assert secret["file"].startswith("${STILLHOUSE_COMPOSE:?")
    for service in SERVICES.values():
        environment = service.get("environment", {}).items()
        telling = [value for name, value in environment if re.search("PASSWORD|SECRET|TOKEN|CREDENTIALS|KEY", name)]
        assert all(value.startswith("/run/secrets/") for value in telling)


def make_secrets(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [INFRA / "compose" / "secrets.sh", folder, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def values(folder: Path) -> dict[str, str]:
    lines = (folder / "secrets.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_secrets_are_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    done = make_secrets(tmp_path)
    first = values(tmp_path)
    make_secrets(tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert values(tmp_path) == first
    assert stat.S_IMODE((tmp_path / "secrets.env").stat().st_mode) == 0o600
    assert len(set(first.values())) == len(first) == 14
    Fernet(first["AIRFLOW_FERNET_KEY"])


def test_each_container_can_be_told_what_it_needs_and_no_more(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    secret = values(tmp_path)
    files = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}

    def holders(name: str) -> set[str]:
        return {file for file, text in files.items() if secret[name] in text}

    assert holders("AIRFLOW_JWT_SECRET") == {"airflow.cfg"}
    assert holders("S3_ADMIN_SECRET") == {"s3-admin", "s3.json"}
    assert holders("MLFLOW_ADMIN_PASSWORD") == {"mlflow-auth.ini"}
    assert holders("MLFLOW_TASKS_PASSWORD") == {"mlflow-credentials", "mlflow-login.env"}
    assert "default_permission = NO_PERMISSIONS" in files["mlflow-auth.ini"]
    identities = {who["name"]: who["actions"] for who in json.loads(files["s3.json"])["identities"]}
    assert all(action.endswith(":stillhouse") for action in identities["stillhouse"])
    # The file of a container that nobody lists would be a secret too many.
    assert set(files) == set(yaml.safe_load((INFRA / "compose.yaml").read_text())["secrets"])


@pytest.mark.parametrize(
    "bad", ["", "short", "airflow_jwt_secret_of_the_docs", "ChangeMe-ChangeMe-ChangeMe", "a" * 32, "quote'" + "x1" * 12]
)
def test_a_secret_that_could_be_guessed_is_refused_by_name(tmp_path: Path, bad: str) -> None:
    make_secrets(tmp_path)
    file = tmp_path / "secrets.env"
    file.write_text(re.sub("(?m)^AIRFLOW_JWT_SECRET=.*$", f"AIRFLOW_JWT_SECRET={bad}", file.read_text()))

    done = make_secrets(tmp_path)

    assert done.returncode == 78
    assert "AIRFLOW_JWT_SECRET" in done.stderr
    assert not bad or bad not in done.stderr


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    (tmp_path / "secrets.env").chmod(0o644)

    done = make_secrets(tmp_path)

    assert done.returncode == 78
    assert "chmod 600" in done.stderr


def test_tasks_get_the_settings_of_pip_and_the_authority_that_the_site_has(tmp_path: Path) -> None:
    (tmp_path / "site.conf").write_text("[global]\ntimeout = 60\n")
    (tmp_path / "site.pem").write_text("-----BEGIN CERTIFICATE-----\n")

    make_secrets(tmp_path, STILLHOUSE_PIP_CONF=str(tmp_path / "site.conf"), STILLHOUSE_CA=str(tmp_path / "site.pem"))

    assert (tmp_path / "secrets" / "pip.conf").read_text() == (tmp_path / "site.conf").read_text()
    assert (tmp_path / "secrets" / "ca.pem").read_text() == (tmp_path / "site.pem").read_text()


def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compose_setup", INFRA / "compose" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("postgres-password", ""),
        ("airflow.cfg", "[core]\nfernet_key =\n[api]\nsecret_key = something\n"),
        ("airflow-passwords.json", '{"admin": "", "reviewer": "something"}'),
    ],
)
def test_empty_secrets_stop_the_stack(tmp_path: Path, name: str, content: str) -> None:
    make_secrets(tmp_path)
    folder = tmp_path / "secrets"
    assert setup_script().empty_secrets(folder) == []

    (folder / name).write_text(content)

    assert setup_script().empty_secrets(folder) == [name]
