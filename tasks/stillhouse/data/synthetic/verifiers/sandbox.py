"""Running a program of unknown making: bounded in time, memory, files and processes, and away from network and files.

What holds it, from the outside in: a session of its own that is killed with everything in it; where the kernel offers
it, namespaces without network and with its own process ids; another user where this one is root; Landlock, which lets
it write nowhere but into its own folder; resource limits. What it can tell the outside is whether its tests passed.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from stillhouse.contract import ConfigurationError

CHILD = Path(__file__).with_name("sandbox_child.py")
STRANGER = 64_321
"""A user id that nobody has: root is bound by no limit on processes, and may write everywhere."""
START_SECONDS = 30.0
"""For an interpreter to start on a busy machine, before the program's own time counts."""
_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child")


class Sandbox:
    """A place to run Python programs in, one after the other."""

    def __init__(self, *, seconds: float, memory_bytes: int) -> None:
        """See what this machine offers.

        Args:
            seconds: Of CPU time for a program and its tests; they may wait about as long besides.
            memory_bytes: Of address space.

        Raises:
            ConfigurationError: Not even an empty program can be run here.
        """
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        verdict = self._run("", "")
        if verdict is None or not verdict["passed"]:
            raise ConfigurationError(
                "an empty program fails in the sandbox; let other users read this Python, or raise verifier.memory_mib"
            )
        self.missing = tuple(
            missing
            for missing, offered in (("with the network", _isolation()), ("with the user's files", verdict["confined"]))
            if not offered
        )
        """In words, what generated code could reach that it should not."""

    def passes(self, program: str, tests: str) -> bool:
        """Return whether a program and then its tests run to their end within the limits, and nothing raises.

        A program that ends the process before its tests are through does not pass.
        """
        verdict = self._run(program, tests)
        return verdict is not None and bool(verdict["passed"])

    def _run(self, program: str, tests: str) -> dict[str, bool] | None:
        """Return what the child says, or None if it does not live to say it."""
        token = secrets.token_hex(16)
        request = {
            "program": program,
            "tests": tests,
            "token": token,
            "seconds": self._seconds,
            "memory_bytes": self._memory_bytes,
            "user": STRANGER if os.geteuid() == 0 else None,
        }
        with (
            tempfile.TemporaryDirectory(prefix="stillhouse-sandbox-", ignore_cleanup_errors=True) as folder,
            tempfile.TemporaryFile() as question,
            tempfile.TemporaryFile() as reply,
        ):
            if request["user"] is not None:
                os.chown(folder, STRANGER, STRANGER)
            question.write(json.dumps(request).encode(errors="replace"))
            question.seek(0)
            child = subprocess.Popen(
                # What `-I` does, but for the seed of hashes: a program must do the same in every run.
                [*_isolation(), sys.executable, "-s", "-P", "-S", str(CHILD)],
                stdin=question,
                stdout=reply,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
            try:
                child.wait(2 * self._seconds + START_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            reply.seek(0)
            lines = reply.read(1000).decode(errors="replace").splitlines()
        if not lines or lines[0] not in ("confined", "unconfined"):
            return None
        return {"confined": lines[0] == "confined", "passed": lines[1:] == [token]}


@cache
def _isolation() -> tuple[str, ...]:
    """Return the command that starts another one without network, if this machine lets us; nothing otherwise."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, *(() if os.geteuid() == 0 else ("--map-root-user",)), *_NAMESPACES, "--")
    tried = subprocess.run([*command, sys.executable, "-S", "-c", ""], capture_output=True, env={})
    return command if tried.returncode == 0 else ()
