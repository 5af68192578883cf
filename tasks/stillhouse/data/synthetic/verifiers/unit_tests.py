"""Right by passing tests."""

import logging
import os
import re

from stillhouse.contract import NotPermitted
from stillhouse.data.synthetic.verifiers.sandbox import Sandbox
from stillhouse.models.answers import Answer
from stillhouse.recipe.synthesis import UnitTestVerifier

PERMISSION = "STILLHOUSE_RUN_GENERATED_CODE"
_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n`]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
logger = logging.getLogger(__name__)


class UnitTests:
    """Runs the program in the last fenced block of the answer, and then the reference, in a sandbox."""

    def __init__(self, config: UnitTestVerifier) -> None:
        """Open the sandbox.

        Raises:
            NotPermitted: The deployment does not allow this machine to run generated code.
            ConfigurationError: No program can be run here.
        """
        if os.environ.get(PERMISSION) != "1":
            raise NotPermitted(
                "synthesis.verifier unit-tests runs generated code, which this machine does not allow; set "
                f"{PERMISSION}=1 where that may be, or choose another verifier"
            )
        self._sandbox = Sandbox(seconds=config.seconds, memory_bytes=config.memory_mib << 20)
        for missing in self._sandbox.missing:
            logger.warning("generated code runs here %s; use a machine whose kernel offers that", missing)

    def accepts(self, answer: Answer, reference: str) -> bool:
        """See `AnswerVerifier`: the program and then the tests run to their end, and nothing raises."""
        program = last_code_block(answer.text)
        return program is not None and self._sandbox.passes(program, reference)


def last_code_block(text: str) -> str | None:
    """Return what stands in the last closed fence of a text in Markdown."""
    blocks = _FENCED.findall(text)
    return blocks[-1][1] if blocks else None
