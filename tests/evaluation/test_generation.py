"""Right answers are told from wrong ones, however they are dressed."""

import random
import string
from decimal import Decimal
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_language import WORDS, tiny_causal, tiny_tokenizer

from stillhouse.contract import DataRejected
from stillhouse.evaluation.generation import Compare, is_right, last_number, normalised, right_answers
from stillhouse.models import PromptAnswers, answer_prompts, documents_of
from stillhouse.recipe import GenerationConfig

COMPARES: tuple[Compare, ...] = ("exact", "normalised", "last-number")


@given(st.text(), st.sampled_from(COMPARES))
def test_a_text_is_right_where_it_is_the_answer(text: str, compare: Compare) -> None:
    if compare == "last-number" and last_number(text) is None:
        assert not is_right(text, text, compare)
    else:
        assert is_right(text, text, compare)


@given(st.text(), st.text(), st.sampled_from(COMPARES))
def test_any_two_texts_can_be_compared_and_exactly_right_is_right(a: str, b: str, compare: Compare) -> None:
    found = is_right(a, b, compare)
    if is_right(a, b, "exact") and (compare != "last-number" or last_number(b) is not None):
        assert found


@given(st.text(string.ascii_letters, min_size=1), st.text(" \t\n"), st.sampled_from(list("!\"'(),.:;?[]_{}…»")))
def test_case_punctuation_and_white_space_do_not_count_when_normalised(word: str, space: str, mark: str) -> None:
    dressed = f"{space}{mark}{word.swapcase()}{mark} {space}{word}{mark}"
    assert is_right(dressed, f"{word} {word}", "normalised")
    assert not is_right(f"{dressed} x", f"{word} {word}", "normalised")
    assert not is_right(dressed, f"{word} {word}", "exact")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("3.5", "35"),
        ("-5", "5"),
        ("10:30", "1030"),
        ("x+y", "xy"),
        ("", "a"),
        ("!", "?"),
        ("", "?"),
        ("the cat", "cat"),
    ],
)
def test_what_differs_is_wrong_when_normalised(answer: str, reference: str) -> None:
    assert not is_right(answer, reference, "normalised")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Don't  STOP. ", "dont stop"),
        ("Straße", "strasse"),
        ("ﬁne\u00a0Ⅷ", "fine viii"),
        ("$3.50!", "$3.50"),
        ("…", ""),
    ],
)
def test_normalised_texts(text: str, plain: str) -> None:
    assert normalised(text) == plain


@given(
    st.decimals(-(10**9), 10**9, places=3), st.text("abc ,.!?\n-$%=()", max_size=9), st.text("abc ,!?\n", max_size=9)
)
def test_the_last_number_is_found_in_whatever_stands_around_it(number: Decimal, before: str, after: str) -> None:
    for shown in (f"{number:f}", f"{number:,f}"):
        assert last_number(f"7 then {before} {shown}{' ' if after[:1].isalnum() else ''}{after}") == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The total is $1,234.50.", "1234.5"),
        ("#### 18", "18"),
        ("3-4", "4"),
        ("it is -4", "-4"),
        ("so it is...5", "5"),
        (".5", "0.5"),
        ("2.5e3 m", "2500"),
        ("5 of 18kg", "18"),
        ("12,34", "34"),
        ("v2 of H2O", None),
        ("1e999999999999", "1"),
        ("none", None),
        ("", None),
    ],
)
def test_last_numbers(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_answers_are_right_by_the_value_of_their_last_number(a: int, b: int) -> None:
    assert is_right(f"I think {a}, no: {b}.0", f"steps {a} #### {b:,}", "last-number")
    assert is_right(f"{a}", f"{b}", "last-number") == (a == b)


def questions(answers: list[str]) -> Dataset:
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(WORDS, k=1 + n % 6)) for n in range(len(answers))]
    return Dataset.from_dict({"id": [f"q{n}" for n in range(len(answers))], "text": answers, "prompt": prompts})


def asked(rows: Dataset, **config: Any) -> Any:
    tokenizer = tiny_tokenizer()
    documents = documents_of("causal-lm", tokenizer, rows, max_tokens=24, mask_share=0.15, seed=0)
    generation = GenerationConfig.model_validate({"max_new_tokens": 3} | config)
    return right_answers(tiny_causal(), tokenizer, rows, documents, config=generation, batch_size=4, seed=1)


def test_answers_are_counted_row_by_row() -> None:
    tokenizer = tiny_tokenizer()
    rows = questions(["good"] * 10)
    documents = documents_of("causal-lm", tokenizer, rows, max_tokens=24, mask_share=0.15, seed=0)
    given_answers: list[PromptAnswers] = answer_prompts(
        tiny_causal(), tokenizer, documents, max_new_tokens=3, samples=4, temperature=0.3, seed=1, batch_size=10
    )
    # The even rows ask for what the model greedily says, the odd ones for something else.
    wanted = [row.greedy if n % 2 == 0 else "nothing of it" for n, row in enumerate(given_answers)]
    found = asked(questions(wanted), samples=4, temperature=0.3)
    assert found.greedy_N.tolist() == [n % 2 == 0 for n in range(10)]
    assert found.samples_N.tolist() == [
        sum(normalised(sample) == normalised(text) for sample in row.samples)
        for row, text in zip(given_answers, wanted, strict=True)
    ]
    assert 0 < found.samples_N.sum() < 20
    assert found.samples == 4


def test_numbers_need_a_reference_with_a_number() -> None:
    with pytest.raises(DataRejected, match="2 right answers hold no number"):
        asked(questions(["18", "none", "", "4"]), compare="last-number")


def test_rows_without_prompts_are_refused() -> None:
    rows = questions(["good film " * 20]).remove_columns("prompt")
    with pytest.raises(DataRejected, match="no prompt"):
        asked(rows)
