"""Verifiers that compare: numbers, words, expressions, a judge's word."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_synthesis import answer

from stillhouse.contract import DataRejected
from stillhouse.data.synthetic.verifiers import open_verifier, symbolic
from stillhouse.data.synthetic.verifiers.exact import ExactMatch
from stillhouse.data.synthetic.verifiers.judge import JudgedByTeacher
from stillhouse.data.synthetic.verifiers.numeric import NumericEquality
from stillhouse.data.synthetic.verifiers.symbolic import SymbolicEquality
from stillhouse.recipe.synthesis import ExactVerifier, JudgeVerifier, NumericVerifier, SymbolicVerifier

NUMERIC = NumericEquality(NumericVerifier())


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Answer: 42", "42"),
        ("The answer is 42.", "42"),
        ("12 + 30 = 42", "#### 42"),
        ("It costs $1,234.50!", "1234.5"),
        ("**42**", "42.0"),
        (r"\boxed{42}", "42"),
        (r"$\frac{3}{4}$", "0.75"),
        ("Answer: 3/4", "0.75"),
        ("Answer: 0.75", "3/4"),
        ("Answer: -5", "-5"),
        ("Answer: \N{MINUS SIGN}5", "-5"),
        ("Answer: -$5", "-5"),
        ("It is 1e-3", "0.001"),
        ("about 1.5E+2", "150"),
        (".5", "0.5"),
        ("12-5", "5"),
        ("1,000,000", "1000000"),
        ("first 7, then 1, 2", "2"),
        ("50%", "50"),
        ("0.1 and 0.30000000000000004", "0.3"),
        (r"the total is 1{,}234", "1234"),
    ],
)
def test_equal_numbers_are_right(text: str, reference: str) -> None:
    assert NUMERIC.accepts(answer("r", text), reference)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("Answer: 41", "42"),
        ("Answer: 42, or maybe 43", "42"),
        ("Answer: 5", "-5"),
        ("Answer: 4.2", "42"),
        ("Answer: 42.001", "42"),
        ("Answer: forty-two", "42"),
        ("", "42"),
        ("Answer: 3/0", "3"),
        ("1" * 5000, "1"),
        ("1e999", "1"),
    ],
)
def test_other_numbers_are_wrong(text: str, reference: str) -> None:
    assert not NUMERIC.accepts(answer("r", text), reference)


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_however_a_number_is_written_it_is_itself(value: int, decimals: int) -> None:
    written = f"So the result is {value / 10**decimals:,.{decimals}f}."
    exact = NumericEquality(NumericVerifier(tolerance=0))
    assert exact.accepts(answer("r", written), f"{value / 10**decimals:.{decimals}f}")
    assert not exact.accepts(answer("r", written), f"{(value + 1) / 10**decimals + 1:.{decimals}f}")


def test_the_tolerance_is_relative_to_large_numbers_and_absolute_below_one() -> None:
    loose = NumericEquality(NumericVerifier(tolerance=0.01))
    assert loose.accepts(answer("r", "1009"), "1000")
    assert not loose.accepts(answer("r", "1011"), "1000")
    assert loose.accepts(answer("r", "0.009"), "0.001")
    assert not loose.accepts(answer("r", "0.03"), "0.01")


def test_a_reference_without_a_number_is_no_reference() -> None:
    with pytest.raises(DataRejected, match=r"^row r has no number in its text; correct it or choose another"):
        NUMERIC.accepts(answer("r", "42"), "forty-two")


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        ("I think.\nAnswer: The Moon!", "the moon", True),
        ("Answer: no. Wait. ANSWER:  yes ", "Yes", True),
        ("the  moon", "The Moon", True),
        ("Answer: the sun", "the moon", False),
        ("Answer: the moon and the sun", "the moon", False),
        ("Answer: -5", "5", False),
        ("Answer: −5", "-5", True),
        ("Answer: 3.5", "3/5", False),
        ("Answer: 3.5.", "3.5", True),
        ("Answer: (a) well-known", "a, well known", True),
        ("Answer: <=", "<=", True),
        ("Answer: <=", ">=", False),
        ("Answer:", "", True),
        ("", "yes", False),
    ],
)
def test_exact_words_after_the_last_marker(text: str, reference: str, right: bool) -> None:
    assert ExactMatch(ExactVerifier()).accepts(answer("r", text), reference) is right


@pytest.mark.parametrize(
    ("review", "right"),
    [
        ("Yes", True),
        (" **YES**, since it is", True),
        ("yes.", True),
        ("yesterday", False),
        ("No, yes would be wrong", False),
        ("", False),
        (None, False),
    ],
)
def test_a_judgement_begins_with_the_word(review: str | None, right: bool) -> None:
    judge = JudgedByTeacher(JudgeVerifier(prompt="{question} {answer}"))
    assert judge.accepts(answer("r", "text", review=review), "") is right


@pytest.fixture(scope="module")
def expressions() -> Iterator[SymbolicEquality]:
    with open_verifier(SymbolicVerifier()) as verifier:
        assert isinstance(verifier, SymbolicEquality)
        yield verifier


@pytest.mark.parametrize(
    ("text", "reference", "right"),
    [
        (r"So $\frac{1}{2}$.", "0.5", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"The answer is $2\sqrt{2}$", r"\sqrt{8}", True),
        ("The answer is 1/2", r"\frac{2}{4}", True),
        (r"\boxed{x+1}", "x+2", False),
        (r"\boxed{\frac{1}{", "1/2", False),
        ("I don't know.", "7", False),
        ("", "7", False),
    ],
)
def test_equal_expressions_are_right(expressions: SymbolicEquality, text: str, reference: str, right: bool) -> None:
    assert expressions.accepts(answer("r", text), reference) is right


def test_what_takes_forever_counts_as_wrong_and_the_next_one_is_compared(
    expressions: SymbolicEquality, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert expressions.accepts(answer("r", r"\boxed{7}"), "7")
    monkeypatch.setattr(symbolic, "SECONDS", 2.0)
    assert not expressions.accepts(answer("r", r"\boxed{9^{9^{9^{9}}}}"), r"9^{9^{9^{8}}} + 1")
    monkeypatch.undo()
    assert expressions.accepts(answer("r", r"\boxed{7}"), "7")
