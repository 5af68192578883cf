"""Objects as files below a folder of this machine, or of a shared file system."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from stillhouse.contract import ConfigurationError, Conflict, sha256_of, sha256_of_file
from stillhouse.store.atomic import (
    exclusive,
    finish,
    make_folder,
    os_errors_explained,
    remove_orphans,
    sync_folder,
    unfinished_file,
)
from stillhouse.store.naming import FILE_SCHEME, RESERVED, check_key, check_prefix


class FileStore:
    """An `ObjectStore` in a folder. The version of an object is the SHA-256 of its bytes.

    Objects are written to ``.stillhouse/unfinished`` below the root, synchronised, then renamed. Every change of a key
    happens under one of 256 lock files, which the operating system releases when their holder dies. Unlike in a bucket,
    a key can't be the folder of another.

    Args:
        folder: The root. It is created by the first write.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_absolute():
            raise ConfigurationError(f"store {folder}: the path must be absolute")
        self.folder = folder
        self.root = f"{FILE_SCHEME}{folder}"
        self._unfinished = folder / RESERVED / "unfinished"
        self._locks = folder / RESERVED / "locks"
        self._ready = False

    def uri(self, key: str) -> str:
        """Return the URI of ``key``."""
        return f"{self.root}/{check_key(key)}"

    def path(self, key: str) -> Path:
        """Return the file that holds ``key``, to be read only."""
        return self.folder / check_key(key)

    def exists(self, key: str) -> bool:
        """Tell whether ``key`` holds an object."""
        path = self.path(key)
        with os_errors_explained(path):
            return path.is_file()

    def get(self, key: str) -> bytes:
        """Return the object's bytes."""
        path = self.path(key)
        with os_errors_explained(path), self._missing_explained(key):
            return path.read_bytes()

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """Return the object's bytes and the version to name in `put_if`."""
        data = self.get(key)
        return data, sha256_of(data)

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object."""
        self._write(key, lambda file: file.write(data))

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        """Write only if the object still has ``version``, or, for None, only if there is none."""
        path = self.path(key)

        def check() -> None:
            found = sha256_of_file(path) if path.is_file() else None
            if found != version:
                raise Conflict(f"{self.uri(key)}: somebody else wrote first; read it again and decide anew")

        self._write(key, lambda file: file.write(data), check=check)
        return sha256_of(data)

    def put_file(self, key: str, path: Path) -> None:
        """Write or replace an object with the contents of a file."""
        with os_errors_explained(path), path.open("rb") as source:
            self._write(key, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to ``path``, whose folder exists; the file appears whole or not at all."""
        source = self.path(key)
        with (
            os_errors_explained(source),
            self._missing_explained(key),
            source.open("rb") as opened,
            os_errors_explained(path),
            unfinished_file(path.parent) as (file, temporary),
        ):
            shutil.copyfileobj(opened, file, 1 << 20)
            finish(file)
            temporary.replace(path)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object whose key starts with ``prefix``, sorted by key."""
        start = self.folder / check_prefix(prefix).rpartition("/")[0]
        if not start.is_dir():
            return {}
        found: dict[str, int] = {}
        with os_errors_explained(start):
            for folder, folders, files in os.walk(start, onerror=_raise):
                if Path(folder) == self.folder and RESERVED in folders:
                    folders.remove(RESERVED)
                for path in (Path(folder, name) for name in files):
                    key = path.relative_to(self.folder).as_posix()
                    if key.startswith(prefix):
                        with suppress(FileNotFoundError):  # deleted meanwhile
                            found[key] = path.stat().st_size
        return dict(sorted(found.items()))

    def keys(self, prefix: str = "") -> list[str]:
        """List the keys that start with ``prefix``, sorted."""
        return list(self.sizes(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is no error."""
        path = self.path(key)
        with os_errors_explained(path), self._locked(key):
            if path.is_file():
                path.unlink()
                sync_folder(path.parent)

    def _write(self, key: str, write: Callable[[BinaryIO], object], *, check: Callable[[], None] | None = None) -> None:
        path = self.path(key)
        self._prepare()
        with os_errors_explained(path), unfinished_file(self._unfinished) as (file, temporary):
            write(file)
            finish(file)
            make_folder(path.parent)
            with self._locked(key):
                if check:
                    check()
                temporary.replace(path)
                sync_folder(path.parent)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        self._prepare()
        with exclusive(self._locks / hashlib.sha256(key.encode()).hexdigest()[:2]):
            yield

    def _prepare(self) -> None:
        if self._ready:
            return
        with os_errors_explained(self.folder):
            make_folder(self._unfinished)
            make_folder(self._locks)
        remove_orphans(self._unfinished)
        self._ready = True

    @contextmanager
    def _missing_explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(f"{self.uri(key)}: no such object") from None


def _raise(error: OSError) -> None:
    raise error
