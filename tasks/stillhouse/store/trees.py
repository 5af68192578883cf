"""Folders as data: which files they hold, with a digest for each and one for all."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from stillhouse.contract import DataRejected, IntegrityError, canonical_json, sha256_of, sha256_of_file
from stillhouse.recipe import Config, Sha256
from stillhouse.store.atomic import os_errors_explained
from stillhouse.store.naming import check_key

MANIFEST = "MANIFEST.json"
"""Written last into a stored folder."""

MAKE_AGAIN = "run the stage that makes it again"


class TreeFile(Config):
    """One file of a folder."""

    path: str
    """Relative to the folder, with ``/`` between parts."""
    sha256: Sha256
    num_bytes: int = Field(ge=0)


class TreeManifest(Config):
    """What a folder holds."""

    schema_id: Literal["stillhouse/tree/1"] = "stillhouse/tree/1"
    files: tuple[TreeFile, ...]
    """Sorted by path."""

    @property
    def sha256(self) -> str:
        """Digest of the folder: that of the manifest's canonical JSON."""
        return sha256_of(canonical_json(self))

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(file.num_bytes for file in self.files)


def describe_tree(folder: Path) -> TreeManifest:
    """Digest every file of ``folder``, except a manifest at its top.

    Raises:
        DataRejected: It holds a symbolic link, or something else than files and folders.
        ConfigurationError: A name can't be a key.
    """
    files = []
    with os_errors_explained(folder):
        for path in _files(folder):
            name = check_key(path.relative_to(folder).as_posix())
            if name != MANIFEST:
                files.append(TreeFile(path=name, sha256=sha256_of_file(path), num_bytes=path.stat().st_size))
    return TreeManifest(files=tuple(sorted(files, key=lambda file: file.path)))


def parse_manifest(data: bytes, *, uri: str, sha256: str) -> TreeManifest:
    """Return the manifest of the folder at ``uri`` from its bytes.

    Raises:
        IntegrityError: The bytes differ from the digest, or are no manifest.
    """
    if sha256_of(data) != sha256:
        raise IntegrityError(f"{uri}/{MANIFEST} differs from the folder's digest; {MAKE_AGAIN}")
    try:
        return TreeManifest.model_validate_json(data)
    except ValidationError:
        raise IntegrityError(f"{uri}/{MANIFEST} is not a manifest; {MAKE_AGAIN}") from None


def check_same_files(
    expected: Mapping[str, str] | Mapping[str, int], found: Mapping[str, str] | Mapping[str, int], *, uri: str
) -> None:
    """Compare digests, or sizes, by file name.

    Raises:
        IntegrityError: They differ; the message names the first file that does.
    """
    for name in sorted({*expected, *found}):
        if name not in found:
            raise IntegrityError(f"{uri}/{name} is missing; {MAKE_AGAIN}")
        if name not in expected:
            raise IntegrityError(f"{uri}/{name} does not belong there; {MAKE_AGAIN}")
        if expected[name] != found[name]:
            raise IntegrityError(f"{uri}/{name} differs from its digest; {MAKE_AGAIN}")


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            if path.is_symlink():
                raise DataRejected(f"{path}: symbolic links are not kept; put the file itself there")
            if name in names:
                if not path.is_file():
                    raise DataRejected(f"{path}: only files and folders are kept")
                yield path
