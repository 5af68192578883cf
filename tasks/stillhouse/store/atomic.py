"""Files that appear whole or not at all, and what the operating system's errors mean."""

import errno
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from stillhouse.contract import ConfigurationError, NotPermitted, StillhouseError, TryAgain

logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_WRONG_NAME = {errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOTEMPTY}
_ORPHAN_SECONDS = 60.0  # long enough for a writer to open its file and lock it


def explain_os_error(error: OSError, path: Path) -> StillhouseError:
    """Turn a failed file operation on ``path`` into the error that says what to do about it."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return TryAgain(f"{path}: the disk is full; free some space and run again")
    if error.errno in _FORBIDDEN:
        return NotPermitted(f"{path}: {reason}; give this user access to it")
    if error.errno in _WRONG_NAME:
        return ConfigurationError(f"{path}: {reason}; another name must be used")
    return TryAgain(f"{path}: {reason}; check the disk and run again")


@contextmanager
def os_errors_explained(path: Path) -> Iterator[None]:
    """Raise what `explain_os_error` makes of an ``OSError`` inside; a missing file stays ``FileNotFoundError``."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explain_os_error(error, path) from error


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, so that they survive a power cut.

    Raises:
        OSError: It can't be created.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.is_dir()]
    for parent in reversed(missing):
        with suppress(FileExistsError):
            parent.mkdir()
        sync_folder(parent.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut.

    Raises:
        OSError: It can't be opened or synchronised.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def unfinished_file(folder: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new file in ``folder``; inside the block its owner writes it and renames it to its final name.

    Whatever still has the temporary name when the block ends is removed. The file is locked while its writer lives, so
    that `remove_orphans` tells the leftovers of killed writers from files in use.

    Raises:
        OSError: The file can't be created.
    """
    path = folder / f"unfinished-{uuid.uuid4().hex}"  # tempfile would hide it from other users, whatever the umask says
    try:
        with path.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file, path
    finally:
        path.unlink(missing_ok=True)


def finish(file: BinaryIO) -> None:
    """Make the contents of ``file`` survive a power cut.

    Raises:
        OSError: Such as that the disk is full.
    """
    file.flush()
    os.fsync(file.fileno())


def remove_orphans(folder: Path) -> None:
    """Remove the unfinished files of writers that were killed."""
    for path in folder.glob("unfinished-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ORPHAN_SECONDS and _is_free(path):
                path.unlink()
                logger.info("removed %s, left behind by a killed process", path)


def _is_free(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold the lock file ``lock``, whose folder exists, against other threads and processes; dying releases it.

    Raises:
        OSError: The lock file can't be created.
    """
    with lock.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
