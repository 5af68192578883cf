"""This machine: what Airflow, and tasks that run beside it, need of it."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from stillhouse.contract import StillhouseError
from stillhouse.orchestration.doctor.finding import Finding
from stillhouse.orchestration.runtimes import DockerRuntime, LocalRuntime, Runtime
from stillhouse.promotion.signing import SigningKeys

GIB = 1 << 30
MIN_FREE_BYTES = 6 * GIB
MIN_MEMORY_BYTES = 6 * GIB


def examine_machine(runtime: Runtime) -> Iterator[Finding]:
    """Look at this machine. Disk and memory matter where tasks run on it, and so do the libraries of the stages."""
    yield from _python()
    if isinstance(runtime, LocalRuntime):
        yield from (*_packages(("airflow", "ml")), *_disk(Path.cwd()), *_memory(), *_sqlite())
    else:
        yield from _packages(("airflow", "docker" if isinstance(runtime, DockerRuntime) else "kubernetes"))
    yield from _signing()


def _python() -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding(
        subject="Python",
        found=".".join(map(str, sys.version_info[:3])),
        remedy="" if fits else "use Python 3.11, 3.12 or 3.13: make run PYTHON=python3.11",
    )


def _packages(extras: Sequence[str]) -> Iterator[Finding]:
    wanted = [Requirement(line) for line in requires("stillhouse") or []]
    needed = [r for r in wanted if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    wrong = []
    for requirement in needed:
        try:
            if not requirement.specifier.contains(version(requirement.name), prereleases=True):
                wrong.append(f"{requirement.name} {version(requirement.name)}, needs {requirement.specifier}")
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
    yield Finding(
        subject="packages",
        found="; ".join(wrong) or f"all {len(needed)} in their ranges",
        remedy=f"make run installs them, and pip install '.[{','.join(extras)}]'" if wrong else "",
    )


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    yield Finding(
        subject="disk",
        found=f"{free / GIB:.0f} GiB free" + ("" if writable else ", not writable"),
        remedy=""
        if free >= MIN_FREE_BYTES and writable
        else f"{MIN_FREE_BYTES // GIB} GiB of writable space are needed",
    )


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        subject="memory",
        found=f"{total / GIB:.0f} GiB, {os.cpu_count()} cores",
        remedy="" if total >= MIN_MEMORY_BYTES else f"{MIN_MEMORY_BYTES // GIB} GiB are needed",
    )


def _sqlite() -> Iterator[Finding]:
    fits = sqlite3.sqlite_version_info >= (3, 15, 0)
    yield Finding(subject="SQLite", found=sqlite3.sqlite_version, remedy="" if fits else "3.15 or newer is needed")


def _signing() -> Iterator[Finding]:
    try:
        keys = SigningKeys.from_environment()
    except StillhouseError as error:
        yield Finding(subject="signing key", found="unfit", remedy=str(error))
        return
    if keys is None:
        found = "none: models are not signed"
    else:
        found = f"{keys.fingerprint[:16]}…" + ("" if keys.private_key else ", to verify only")
    yield Finding(subject="signing key", found=found)
