"""What all verifiers have in common, and which one a recipe asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from stillhouse.data.synthetic.verifiers.exact import ExactMatch
from stillhouse.data.synthetic.verifiers.judge import JudgedByTeacher
from stillhouse.data.synthetic.verifiers.numeric import NumericEquality
from stillhouse.data.synthetic.verifiers.symbolic import SymbolicEquality
from stillhouse.data.synthetic.verifiers.unit_tests import UnitTests
from stillhouse.models.answers import Answer
from stillhouse.recipe.synthesis import Verifier


class AnswerVerifier(Protocol):
    """Tells right answers from wrong ones. Equal questions get equal verdicts."""

    def accepts(self, answer: Answer, reference: str) -> bool:
        """Return whether an answer is right. What can't be read in the answer is wrong.

        Args:
            answer: What the teacher wrote.
            reference: The row's text.

        Raises:
            DataRejected: No answer could be right by this reference.
        """
        ...


@contextmanager
def open_verifier(config: Verifier) -> Iterator[AnswerVerifier]:
    """Give the verifier that a recipe asks for, and end what it started.

    Raises:
        NotPermitted: It would run generated code on a machine that does not allow it.
    """
    if config.kind == "symbolic":
        with SymbolicEquality() as symbolic:
            yield symbolic
    elif config.kind == "numeric":
        yield NumericEquality(config)
    elif config.kind == "exact":
        yield ExactMatch(config)
    elif config.kind == "judge":
        yield JudgedByTeacher(config)
    else:
        yield UnitTests(config)
