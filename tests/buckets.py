"""Fixtures of a real S3 server, SeaweedFS on loopback; a conftest imports those that its tests need."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ACCESS_KEY, SECRET_KEY, Server, create_bucket, s3_server


def s3_settings(url: str, folder: Path) -> dict[str, str]:
    """Return AWS settings of the writer at the server ``url``; nothing of the user's is read."""
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The process's AWS settings point at the server."""
    for name, value in s3_settings(s3.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def bucket(s3_environment: Server) -> str:
    """One bucket for all: SeaweedFS keeps volumes of its own for each."""
    create_bucket(s3_environment.url, "store")
    return "store"
