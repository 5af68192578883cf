"""The doctor at real servers: what it finds well, what it finds wrong, and that it leaves nothing behind."""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from mlflow import MlflowClient
from servers import (
    ACCESS_KEY,
    ADMIN_KEY,
    MLFLOW_ADMIN,
    MLFLOW_PASSWORD,
    READER_KEY,
    READER_SECRET,
    SECRET_KEY,
    Server,
    create_bucket,
    mlflow_server,
    mlflow_server_with_users,
    s3_server,
)

from stillhouse.orchestration.doctor import Finding, findings
from stillhouse.orchestration.doctor.cluster import examine_cluster
from stillhouse.orchestration.doctor.engine import examine_engine
from stillhouse.orchestration.doctor.servers import examine_mlflow, examine_store
from stillhouse.orchestration.runtimes import DockerRuntime, KubernetesRuntime
from stillhouse.store import FileStore, open_store

PIN = "@sha256:" + "0" * 64


def faults(found: Iterator[Finding]) -> dict[str, str]:
    """Return the remedies by subject; of grave faults only."""
    return {finding.subject: finding.remedy for finding in found if finding.remedy and finding.grave}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        create_bucket(server.url, "doctor")
        yield server


@pytest.fixture
def bucket(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    return "s3://doctor/store"


def test_a_sound_bucket_is_found_sound_and_left_empty(bucket: str) -> None:
    (finding,) = examine_store(bucket)
    assert "one winner of 8" in finding.found
    assert finding.remedy == ""
    assert open_store(bucket).keys() == []


def test_a_reader_s_credentials_and_a_missing_bucket_are_told_apart(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "does not exist" in faults(examine_store("s3://nowhere/store"))["object store"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    assert "credentials and their rights" in faults(examine_store(bucket))["object store"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMIN_KEY)
    (finding,) = examine_store(bucket)  # another user's name with the reader's secret
    assert finding.remedy
    assert READER_SECRET not in finding.remedy + finding.found


def test_a_store_where_two_may_win_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: FileStore, key: str, data: bytes, *, version: str | None) -> str:
        self.put(key, data)
        return "1"

    monkeypatch.setattr(FileStore, "put_if", careless)
    assert "If-None-Match" in faults(examine_store(str(tmp_path)))["object store"]
    assert FileStore(tmp_path).keys() == []


@pytest.mark.slow
def test_mlflow_is_asked_for_all_that_tasks_need_and_keeps_one_run(tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server:
        for _ in range(2):
            (finding,) = examine_mlflow(server.url)
            assert finding.remedy == ""
        tracking = MlflowClient(server.url)
        (experiment,) = [e for e in tracking.search_experiments() if e.name == "stillhouse-doctor"]
        assert len(tracking.search_runs([experiment.experiment_id])) == 1
        assert tracking.search_registered_models() == []
        assert [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []
    assert "no MLflow answers" in faults(examine_mlflow(server.url))["MLflow"]


@pytest.mark.slow
def test_mlflow_s_users_are_told_what_they_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_server_with_users(tmp_path) as server:
        assert "refuses the credentials" in faults(examine_mlflow(server.url))["MLflow"]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", MLFLOW_ADMIN)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        assert "refuses the credentials" in faults(examine_mlflow(server.url))["MLflow"]
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", MLFLOW_PASSWORD)
        (finding,) = examine_mlflow(server.url)
        assert finding.remedy == ""
        assert "as admin" in finding.found
        assert MLFLOW_PASSWORD not in finding.found


def test_settings_that_are_wrong_are_named_and_none_are_no_fault() -> None:
    assert "deployment" in faults(findings({"STILLHOUSE_STORE": "s3://bucket/store"}))
    assert "deployment" not in faults(findings({}))


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("docker", "kubernetes.client"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "stillhouse[docker]" in faults(examine_engine(DockerRuntime(image="x")))["Docker"]
    assert "stillhouse[kubernetes]" in faults(examine_cluster(KubernetesRuntime(image="x" + PIN)))["Kubernetes"]


def test_servers_that_are_away_are_named(tmp_path: Path) -> None:
    away = DockerRuntime(image="x" + PIN, url=f"unix://{tmp_path}/none.sock")
    assert "no engine answers" in faults(examine_engine(away))["Docker"]
    lost = KubernetesRuntime(image="x" + PIN, config_file=PurePosixPath(tmp_path, "none"))
    assert "no API server answers" in faults(examine_cluster(lost))["Kubernetes"]
