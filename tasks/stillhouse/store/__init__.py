"""One object store API over folders and S3, artifacts with digests, and sources of outside files."""

from stillhouse.store.artifacts import (
    fetch_artifact,
    read_artifact,
    save_bytes,
    save_file,
    save_tree,
    verify_artifact,
)
from stillhouse.store.base import ObjectStore
from stillhouse.store.file import FileStore
from stillhouse.store.opening import locate, open_store
from stillhouse.store.sources import fetch_source, fingerprint_source
from stillhouse.store.trees import describe_tree

__all__ = [
    "FileStore",
    "ObjectStore",
    "describe_tree",
    "fetch_artifact",
    "fetch_source",
    "fingerprint_source",
    "locate",
    "open_store",
    "read_artifact",
    "save_bytes",
    "save_file",
    "save_tree",
    "verify_artifact",
]
