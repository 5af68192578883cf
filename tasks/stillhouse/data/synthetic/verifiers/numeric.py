"""Right by the last number."""

from fractions import Fraction

from stillhouse.contract import DataRejected
from stillhouse.data.synthetic.numerals import last_number
from stillhouse.models.answers import Answer
from stillhouse.recipe.synthesis import NumericVerifier


class NumericEquality:
    """Compares the last number of the answer with the last number of the reference."""

    def __init__(self, config: NumericVerifier) -> None:
        self._tolerance = Fraction(config.tolerance)

    def accepts(self, answer: Answer, reference: str) -> bool:
        """See `AnswerVerifier`: the numbers differ by no more than the tolerance of the larger one, or of 1."""
        expected = last_number(reference)
        if expected is None:
            raise DataRejected(
                f"row {answer.prompt.row} has no number in its text; correct it or choose another synthesis.verifier"
            )
        found = last_number(answer.text)
        if found is None:
            return False
        larger = max(Fraction(1), abs(found), abs(expected))
        return abs(found - expected) <= self._tolerance * larger
