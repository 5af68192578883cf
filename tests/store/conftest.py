"""Stores of both kinds; S3 is a real SeaweedFS server on loopback."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import ACCESS_KEY, SECRET_KEY, Server, create_bucket, s3_server

from stillhouse.store import ObjectStore, open_store


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The process's AWS settings point at the server, and nothing of the user's is read."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3.url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture
def bucket(s3_environment: Server) -> str:
    """One bucket for all: SeaweedFS keeps volumes of its own for each."""
    create_bucket(s3_environment.url, "store")
    return "store"


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'store'}"
    return f"s3://{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}/prefix"


@pytest.fixture
def store(root: str) -> ObjectStore:
    return open_store(root)
