"""Files and folders in a store, each with a digest that is checked whenever it is read."""

import shutil
import uuid
from pathlib import Path

from stillhouse.contract import (
    Artifact,
    ConfigurationError,
    DataRejected,
    IntegrityError,
    canonical_json,
    sha256_of,
    sha256_of_file,
)
from stillhouse.store.atomic import make_folder, os_errors_explained
from stillhouse.store.base import ObjectStore
from stillhouse.store.file import FileStore
from stillhouse.store.opening import locate
from stillhouse.store.trees import (
    MAKE_AGAIN,
    MANIFEST,
    TreeManifest,
    check_same_files,
    describe_tree,
    parse_manifest,
)


def save_bytes(store: ObjectStore, key: str, data: bytes) -> Artifact:
    """Store ``data`` under ``key``."""
    store.put(key, data)
    return Artifact(uri=store.uri(key), sha256=sha256_of(data), num_bytes=len(data))


def save_file(store: ObjectStore, key: str, path: Path) -> Artifact:
    """Store the file at ``path`` under ``key``."""
    with os_errors_explained(path):
        artifact = Artifact(uri=store.uri(key), sha256=sha256_of_file(path), num_bytes=path.stat().st_size)
    store.put_file(key, path)
    return artifact


def save_tree(store: ObjectStore, prefix: str, folder: Path) -> Artifact:
    """Store the files of ``folder`` below ``prefix``, then their manifest; the prefix holds nothing else afterwards.

    Raises:
        DataRejected: The folder has no files, holds a symbolic link, or has a ``MANIFEST.json`` of its own.
    """
    if (folder / MANIFEST).exists():
        raise DataRejected(f"{folder}: the name {MANIFEST} is reserved; rename that file")
    manifest = describe_tree(folder)
    if not manifest.files:
        raise DataRejected(f"{folder}: there are no files to keep")
    wanted = {f"{prefix}/{file.path}" for file in manifest.files}
    for key in store.keys(f"{prefix}/"):
        if key not in wanted:
            store.delete(key)
    for file in manifest.files:
        store.put_file(f"{prefix}/{file.path}", folder / file.path)
    store.put(f"{prefix}/{MANIFEST}", canonical_json(manifest))
    return Artifact(uri=store.uri(prefix), sha256=manifest.sha256, num_bytes=manifest.num_bytes, kind="tree")


def read_artifact(artifact: Artifact) -> bytes:
    """Return the verified bytes of a file artifact.

    Raises:
        IntegrityError: It is missing or differs from its digest.
    """
    if artifact.kind != "file":
        raise ConfigurationError(f"{artifact.uri} is a folder; a file is needed")
    store, key = locate(artifact.uri)
    data = _get(store, key)
    if sha256_of(data) != artifact.sha256:
        raise IntegrityError(f"{artifact.uri} differs from its digest; {MAKE_AGAIN}")
    return data


def verify_artifact(artifact: Artifact) -> bool:
    """Tell whether the artifact is there and intact, without downloading it.

    On this machine every byte is read. In a bucket, the size of every file is compared, and a folder's manifest is
    read; bytes are verified when they are fetched.
    """
    store, key = locate(artifact.uri)
    try:
        if isinstance(store, FileStore):
            _check_local(store.path(key), artifact)
        elif artifact.kind == "file":
            return store.sizes(key).get(key) == artifact.num_bytes
        else:
            _check_remote(store, key, artifact)
    except DataRejected:
        return False
    return True


def fetch_artifact(artifact: Artifact, cache: Path) -> Path:
    """Return a local path of the verified file or folder, to be read only.

    Artifacts on this machine are verified where they are. Others are downloaded into ``cache``, below their digest,
    once. A folder holds its ``MANIFEST.json``, too.

    Raises:
        IntegrityError: A file is missing, added or differs from its digest; the message names it.
    """
    store, key = locate(artifact.uri)
    if isinstance(store, FileStore):
        return _check_local(store.path(key), artifact)
    target = cache / artifact.sha256 / key
    if target.exists():
        try:
            return _check_local(target, artifact)
        except DataRejected:
            shutil.rmtree(target.parent, ignore_errors=True)
    working = cache / f"unfinished-{uuid.uuid4().hex}"
    try:
        with os_errors_explained(working):
            make_folder(working)
            make_folder(target.parent)
            _download(store, key, artifact, working / key)
            _check_local(working / key, artifact)
            _move(working / key, target)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return target


def _move(path: Path, target: Path) -> None:
    """Rename a verified file or folder, unless another process was faster."""
    try:
        path.replace(target)
    except OSError:
        if not target.exists():
            raise


def _download(store: ObjectStore, key: str, artifact: Artifact, path: Path) -> None:
    if artifact.kind == "file":
        _get_file(store, key, path)
        return
    manifest = _check_remote(store, key, artifact)
    for name in (MANIFEST, *(file.path for file in manifest.files)):
        make_folder((path / name).parent)
        _get_file(store, f"{key}/{name}", path / name)


def _check_remote(store: ObjectStore, key: str, artifact: Artifact) -> TreeManifest:
    """Verify a stored folder's manifest, and the names and sizes of its files."""
    manifest = parse_manifest(_get(store, f"{key}/{MANIFEST}"), uri=artifact.uri, sha256=artifact.sha256)
    found = {name.removeprefix(f"{key}/"): size for name, size in store.sizes(f"{key}/").items()}
    del found[MANIFEST]
    check_same_files({file.path: file.num_bytes for file in manifest.files}, found, uri=artifact.uri)
    return manifest


def _check_local(path: Path, artifact: Artifact) -> Path:
    """Verify every byte of a file or folder on this machine."""
    with os_errors_explained(path):
        if artifact.kind == "file":
            if not path.is_file():
                raise IntegrityError(f"{artifact.uri} is missing; {MAKE_AGAIN}")
            if sha256_of_file(path) != artifact.sha256:
                raise IntegrityError(f"{artifact.uri} differs from its digest; {MAKE_AGAIN}")
            return path
        if not (path / MANIFEST).is_file():
            raise IntegrityError(f"{artifact.uri}/{MANIFEST} is missing; {MAKE_AGAIN}")
        manifest = parse_manifest((path / MANIFEST).read_bytes(), uri=artifact.uri, sha256=artifact.sha256)
    found = describe_tree(path)
    check_same_files(
        {file.path: file.sha256 for file in manifest.files},
        {file.path: file.sha256 for file in found.files},
        uri=artifact.uri,
    )
    return path


def _get(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key)
    except FileNotFoundError:
        raise IntegrityError(f"{store.uri(key)} is missing; {MAKE_AGAIN}") from None


def _get_file(store: ObjectStore, key: str, path: Path) -> None:
    try:
        store.get_file(key, path)
    except FileNotFoundError:
        raise IntegrityError(f"{store.uri(key)} is missing; {MAKE_AGAIN}") from None
