"""Near-duplicates are those that an exact comparison of all pairs finds, in whatever order the rows come."""

import random
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.data.contamination import MAX_MISSED, bands, jaccard, near_duplicates, word_ngrams
from stillhouse.recipe import ContaminationConfig

WORDS = [f"w{number}" for number in range(40)]
FOX = "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm sun."


def _frame(*texts: str) -> pd.DataFrame:
    return pd.DataFrame({"text": list(texts)}, dtype=object)


def _near(text: str, other: str, **fields: Any) -> bool:
    found = near_duplicates(_frame(text), {"test": _frame(other)}, ContaminationConfig(**fields))
    return bool(found["test"][0])


def _sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 25))) for _ in range(count)]


def _edited(text: str, rng: random.Random) -> str:
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


@pytest.mark.parametrize(
    ("other", "fields", "expected"),
    [
        (FOX.replace(",", " -").upper(), {}, True),  # punctuation and case don't count
        (FOX.replace("sun", "rain"), {}, True),
        (FOX.replace("lazy", "old"), {}, False),  # an inner word is in five of thirteen n-grams
        (FOX.replace("lazy", "old"), {"threshold": 0.4}, True),
        (FOX.replace("lazy", "old"), {"ngram": 1}, True),
        (FOX.replace("sun", "rain"), {"threshold": 1}, False),
        (FOX.replace(",", ""), {"threshold": 1}, True),
        ("Nothing of the kind was ever written by anybody here or there.", {}, False),
    ],
)
def test_an_edited_copy_is_near_as_far_as_the_threshold_says(
    other: str, fields: dict[str, Any], expected: bool
) -> None:
    assert _near(FOX, other, **fields) is expected


def test_short_texts_are_compared_as_a_whole() -> None:
    assert _near("Good film!", "good film")
    assert not _near("good film", "good films")
    assert not _near("good film", "good film it was")


def test_texts_without_words_and_without_anything_are_near_to_nothing_else() -> None:
    found = near_duplicates(_frame("", "?!", "..."), {"test": _frame("", "!?", " ")}, ContaminationConfig())
    assert not found["test"].any()


def test_an_equal_text_is_a_leak_and_not_taken_for_a_near_duplicate() -> None:
    edited = FOX.replace("sun", "rain")
    others = {"validation": _frame(edited), "test": _frame(f" {FOX.upper()}")}
    assert not near_duplicates(_frame(FOX), others, ContaminationConfig()).any(axis=None)


def test_the_same_answer_to_another_question_is_not_near() -> None:
    ours, theirs, asked_again = (
        pd.DataFrame({"prompt": [prompt], "text": ["Yes, it is."]}, dtype=object)
        for prompt in (
            FOX,
            "Is anything else the case, as far as anybody knows today?",
            FOX.replace("The quick", "A quick"),
        )
    )
    found = near_duplicates(ours, {"test": theirs, "again": asked_again}, ContaminationConfig())
    assert found.iloc[0].to_dict() == {"test": False, "again": True}


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
def test_what_is_found_is_what_comparing_all_pairs_finds(threshold: float) -> None:
    rng = random.Random(5)
    held_out = _sentences(60, 1)
    ours = [_edited(text, rng) for text in held_out] + _sentences(60, 2)
    config = ContaminationConfig(threshold=threshold, ngram=2)
    found = near_duplicates(_frame(*ours), {"test": _frame(*held_out)}, config)["test"]
    expected = [
        text not in held_out
        and any(jaccard(word_ngrams(text, 2), word_ngrams(other, 2)) >= threshold for other in held_out)
        for text in ours
    ]
    assert list(found) == expected
    assert 5 < sum(expected) < len(ours) - 5


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_rows_decides_nothing(rng: random.Random) -> None:
    held_out = _sentences(12, 3)
    ours = [_edited(text, random.Random(7)) for text in held_out]
    before = near_duplicates(_frame(*ours), {"test": _frame(*held_out)}, ContaminationConfig(threshold=0.5, ngram=1))
    marks = dict(zip(ours, before["test"], strict=True))
    rng.shuffle(ours)
    rng.shuffle(held_out)
    after = near_duplicates(_frame(*ours), {"test": _frame(*held_out)}, ContaminationConfig(threshold=0.5, ngram=1))
    assert dict(zip(ours, after["test"], strict=True)) == marks


def test_rows_keep_their_index() -> None:
    frame = _frame(FOX, "something else").set_axis([7, 3])
    found = near_duplicates(frame, {"test": _frame(FOX.replace("sun", "rain"))}, ContaminationConfig())
    assert found["test"].to_dict() == {7: True, 3: False}


@given(st.text(), st.integers(1, 6))
def test_every_text_with_a_character_has_an_ngram_and_is_equal_to_itself(text: str, length: int) -> None:
    ngrams = word_ngrams(text, length)
    assert bool(ngrams) == bool(text)
    assert not ngrams or jaccard(ngrams, ngrams) == 1


@given(st.floats(0.05, 1), st.integers(16, 512))
def test_bands_fit_and_miss_few_pairs_at_the_threshold(threshold: float, permutations: int) -> None:
    count, rows = bands(threshold, permutations)
    assert count >= 2
    assert count * rows <= permutations
    assert rows == 1 or (1 - threshold**rows) ** count <= MAX_MISSED
