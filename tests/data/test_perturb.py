"""A perturbed set is the test set with other texts: same rows, same labels, whatever the order."""

import random
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.perturb import perturb
from stillhouse.recipe import Perturbation

KINDS = ("typos", "case", "length", "template")
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=12
)
SENTENCE = "The actors were wonderful although nobody believed a single word of what they said"


def _config(kind: str, **fields: Any) -> Perturbation:
    templates = ("I heard that {text}", 'They {wrote}: "{text}"') if kind == "template" else ("{text}",)
    return Perturbation.model_validate({"name": "p", "kind": kind, "templates": templates} | fields)


def _frame(texts: list[str]) -> pd.DataFrame:
    rows = range(len(texts))
    return pd.DataFrame({"id": [f"r{row}" for row in rows], "text": texts, "label": [row % 2 for row in rows]})


def _one(text: str, kind: str, **fields: Any) -> str:
    return str(perturb(_frame([text]), _config(kind, **fields))["text"][0])


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, strength=st.floats(0.01, 1))
def test_rows_and_labels_stay_and_no_text_becomes_empty(kind: str, texts: list[str], strength: float) -> None:
    frame = _frame(texts)
    changed = perturb(frame, _config(kind, strength=strength))
    pd.testing.assert_frame_equal(changed.drop(columns="text"), frame.drop(columns="text"))
    assert list(frame["text"]) == texts
    assert all(text.strip() for text in changed["text"])


@pytest.mark.parametrize("kind", KINDS)
@given(texts=TEXTS, rng=st.randoms(use_true_random=False))
def test_a_text_is_changed_alike_wherever_it_stands(kind: str, texts: list[str], rng: random.Random) -> None:
    config = _config(kind, strength=0.4)
    before = dict(zip(texts, perturb(_frame(texts), config)["text"], strict=True))
    rng.shuffle(texts)
    assert dict(zip(texts, perturb(_frame(texts), config)["text"], strict=True)) == before


@pytest.mark.parametrize("kind", ["typos", "length", "template"])
@given(st.lists(st.sampled_from(SENTENCE.split()), min_size=2, max_size=15), st.floats(0.01, 1))
def test_a_text_that_offers_something_to_change_changes(kind: str, words: list[str], strength: float) -> None:
    text = " ".join(["nothing", *words])
    assert _one(text, kind, strength=strength) != text


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_text_stays_empty_for_the_suites_to_find(kind: str) -> None:
    assert _one(" ", kind) == " "


@pytest.mark.parametrize("kind", ["typos", "case", "template"])
def test_the_seed_decides_what_becomes_of_a_text(kind: str) -> None:
    assert len({_one(SENTENCE, kind, seed=seed, strength=0.5) for seed in range(10)}) > 1


@given(st.integers(1, 14), st.integers(0, 50))
def test_typos_hit_the_share_of_words_and_spare_their_ends(count: int, seed: int) -> None:
    words = [f"word{'abcdefghijklmn'[number]}ending" for number in range(14)]
    found = _one(" ".join(words), "typos", strength=count / 14, seed=seed).split(" ")
    hit = [(word, typo) for word, typo in zip(words, found, strict=True) if word != typo]
    assert len(hit) == count
    assert all((word[0], word[-1]) == (typo[0], typo[-1]) for word, typo in hit)
    assert all(abs(len(word) - len(typo)) <= 1 for word, typo in hit)


def test_typos_leave_short_words_and_numbers_alone() -> None:
    assert _one("a 12345 of the", "typos", strength=1) == "a 12345 of the"


def test_case_capitalises_the_share_of_texts() -> None:
    texts = [f"Text Number {number}" for number in range(1000)]
    changed = perturb(_frame(texts), _config("case", strength=0.3))["text"]
    assert all(new in (old.upper(), old.lower()) for old, new in zip(texts, changed, strict=True))
    assert 250 < changed.str.isupper().sum() < 350


@pytest.mark.parametrize(("strength", "left"), [(0.1, 9), (0.5, 5), (1, 1), (0.01, 9)])
def test_length_keeps_the_first_words_as_they_were_written(strength: float, left: int) -> None:
    text = "one  two\tthree four five six seven eight nine ten"
    found = _one(text, "length", strength=strength)
    assert text.startswith(found)
    assert len(found.split()) == left


def test_every_template_is_used_and_holds_the_text_as_it_is() -> None:
    texts = [f"text {{number}} {number}" for number in range(50)]
    changed = perturb(_frame(texts), _config("template"))["text"]
    frames = {new.replace(old, "{text}") for old, new in zip(texts, changed, strict=True)}
    assert frames == {"I heard that {text}", 'They {wrote}: "{text}"'}
