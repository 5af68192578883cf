"""Server processes: each leads its own group, is known by pid and birth, and ends with all its children."""

import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

from stillhouse.recipe import Config

logger = logging.getLogger(__name__)

SECONDS_TO_STOP = 15.0
"""From the polite signal to SIGKILL."""


class ServerProcess(Config):
    """A started server. Pid and birth together never name a different process, even after a reboot."""

    name: str
    pid: int
    born: float
    """Creation time, seconds since the epoch."""

    @classmethod
    def start(
        cls, name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path, folder: Path
    ) -> Self:
        """Start ``command`` in its own process group, with all its output appended to ``log``."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return cls(name=name, pid=process.pid, born=psutil.Process(process.pid).create_time())

    @classmethod
    def this(cls) -> Self:
        """Describe the process that runs this."""
        return cls(name="quickstart", pid=os.getpid(), born=psutil.Process().create_time())

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        found = self._find()
        return found is not None and found.status() != psutil.STATUS_ZOMBIE

    def stop(self, *, polite: signal.Signals = signal.SIGTERM) -> None:
        """End the process and all that it started: ``polite`` to the leader first, SIGKILL to whoever is left."""
        found = self._find()
        family = [] if found is None else [found, *_children(found)]
        if found is not None and self.alive():
            found.send_signal(polite)
            psutil.wait_procs(family, timeout=SECONDS_TO_STOP)
        for member in {*family, *_group(self.pid, self.born)}:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=SECONDS_TO_STOP)

    def _find(self) -> psutil.Process | None:
        try:
            process = psutil.Process(self.pid)
            return process if abs(process.create_time() - self.born) < 1.0 else None
        except psutil.NoSuchProcess:
            return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return found


def _group(group: int, born: float) -> list[psutil.Process]:
    """Return what is left of a process group, also when its leader is gone."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.create_time() >= born - 1.0:
                members.append(process)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return members
