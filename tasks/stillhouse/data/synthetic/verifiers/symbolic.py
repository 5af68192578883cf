"""Right by the same mathematical expression."""

import json
import selectors
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from stillhouse.contract import DataRejected, StageBug
from stillhouse.models.answers import Answer

SECONDS = 20.0
"""For one comparison. Simplifying a wild expression may never end; it then counts as wrong."""
START_SECONDS = 120.0
"""For the library to be imported on a busy machine."""
CHILD = Path(__file__).with_name("symbolic_child.py")
"""Run as a script: as a module it would import the whole room first."""


class SymbolicEquality:
    """Compares expressions by the library math-verify in a process of its own.

    The library guards itself by SIGALRM, which works in no thread but the first, takes the alarm from whoever has set
    one, and can't interrupt all of sympy. A process can be ended whatever it does.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def accepts(self, answer: Answer, reference: str) -> bool:
        """See `AnswerVerifier`: the last expression of the answer, or the one in a box, equals the reference."""
        verdict = self._ask(json.dumps([answer.text, reference]))
        if verdict == "no-reference":
            raise DataRejected(
                f"row {answer.prompt.row} has no mathematical expression in its text; correct it or choose another "
                "synthesis.verifier"
            )
        return verdict == "equal"

    def close(self) -> None:
        """End the process. May be called twice."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: str) -> str:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # it may name texts
                text=True,
            )
            if self._line(START_SECONDS) != "ready":
                raise StageBug("the process that compares expressions does not start; is math-verify installed?")
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(question + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            verdict = ""
        else:
            verdict = self._line(SECONDS)
        if not verdict:
            self.close()
        return verdict

    def _line(self, seconds: float) -> str:
        """Return the next line of the process; nothing if it takes too long or has died."""
        assert self._child is not None
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            return self._child.stdout.readline().strip() if selector.select(seconds) else ""
