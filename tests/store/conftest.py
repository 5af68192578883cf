"""Stores of both kinds; S3 is a real SeaweedFS server on loopback."""

import uuid
from pathlib import Path

import pytest
from buckets import bucket, s3, s3_environment

from stillhouse.store import ObjectStore, open_store

__all__ = ["bucket", "s3", "s3_environment"]


@pytest.fixture(params=["file", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path / 'store'}"
    return f"s3://{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}/prefix"


@pytest.fixture
def store(root: str) -> ObjectStore:
    return open_store(root)
