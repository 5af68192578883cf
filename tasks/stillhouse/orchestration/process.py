"""A stage as a process of its own: started, followed line by line, stopped with all its children."""

import ctypes
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

SECONDS_TO_STOP = 20.0
"""From SIGTERM to SIGKILL. Airflow itself waits 60 s for a task that it stops."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class StageProcess:
    """A command in its own process group, with its output and errors as one stream of lines.

    On Linux the kernel kills the command when this process dies, so that a lost worker leaves nothing behind that
    holds a device or races with the next try.

    Args:
        command: What to run.
        environment: All of its environment.
        memory_gib: Limit on the data of each of its processes; what would go beyond it is refused to the process.
    """

    def __init__(self, command: Sequence[str], *, environment: dict[str, str], memory_gib: float | None = None) -> None:
        self._process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,
            preexec_fn=_prepare(os.getpid(), memory_gib),
        )

        self._killer = threading.Timer(SECONDS_TO_STOP, _signal_group, (self._process.pid, signal.SIGKILL))
        self._killer.daemon = True
        self._watcher = threading.Thread(target=self._wait, name="stage-watcher", daemon=True)
        self._watcher.start()

    def follow(self, on_line: Callable[[str], None]) -> int:
        """Hand each line to ``on_line`` until the command ends; return its exit code, negative for a signal.

        Whatever interrupts this, such as Airflow's timeout, stops the command first.
        """
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if text := line.rstrip():
                    on_line(text)
        except BaseException:
            self.stop()
            raise
        finally:
            self._watcher.join()
        return self._process.returncode

    def stop(self) -> None:
        """Ask the command and its children to stop, and see to it that they do. Returns at once.

        Called from a signal handler, so it must not wait for anything that the interrupted code may hold.
        """
        _signal_group(self._process.pid, signal.SIGTERM)
        if self._killer.ident is None:
            self._killer.start()

    def _wait(self) -> None:
        self._process.wait()
        self._killer.cancel()
        # Children that outlive the command would hold its output open, and a device.
        _signal_group(self._process.pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        # Nobody is left in the group, or only a process that has ended and was not yet waited for.
        return


def _prepare(parent: int, memory_gib: float | None) -> Callable[[], None] | None:
    """Return what the child does before it becomes the command. Nothing is imported there: the parent has threads."""
    libc = _LIBC
    if libc is None:
        return None

    def in_the_child() -> None:
        if memory_gib is not None:
            # Not RLIMIT_AS: torch reserves much more address space than it ever writes to.
            limit = int(memory_gib * (1 << 30))
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return in_the_child
