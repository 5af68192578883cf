"""Right by the same words."""

import re

from stillhouse.models.answers import Answer
from stillhouse.recipe.synthesis import ExactVerifier

TERM = re.compile(r"(?<![\w)])[-−]?\d+(?:[.,:/]\d+)*|\w+")
"""A word, or a number with its sign and all that is written within it: there, punctuation carries meaning."""


class ExactMatch:
    """Compares what follows the last marker with the reference."""

    def __init__(self, config: ExactVerifier) -> None:
        self._marker = config.marker.casefold()

    def accepts(self, answer: Answer, reference: str) -> bool:
        """See `AnswerVerifier`: the same words and numbers, whatever the case, other punctuation and white space."""
        _, _, final = answer.text.casefold().rpartition(self._marker)
        return _terms(final) == _terms(reference)


def _terms(text: str) -> list[str]:
    folded = text.casefold().replace("−", "-")
    # A text of nothing but signs, such as an operator, stands for itself.
    return TERM.findall(folded) or folded.split()
