"""Figures that tell samples of one distribution from samples of two, and intervals that hold."""

import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from stillhouse.contract import DataRejected
from stillhouse.data.coverage import _auroc_of_scores, measure_coverage, script
from stillhouse.data.report import CoverageFigure
from stillhouse.recipe import CoverageConfig

TABLE = {"source": {"kind": "path", "path": "/x"}, "format": "csv", "licence": "x", "origin": "x"}
CONFIG = CoverageConfig.model_validate({"reference": TABLE})
FILMS = "film actor scene story music director plot ending camera screen drama comedy role cast script".split()
GOODS = "battery cable price parcel phone charger delivery warranty refund box seller discount invoice".split()
COMMON = "the a with and of this was is very not much again more than it".split()


def _texts(count: int, seed: int, words: list[str] = FILMS, *, length: tuple[int, int] = (6, 14)) -> list[str]:
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(words if rng.random() < 0.5 else COMMON) for _ in range(rng.randint(*length)))
        for _ in range(count)
    ]


def _frame(texts: list[str], labels: list[int] | None = None) -> pd.DataFrame:
    frame = pd.DataFrame({"id": [str(n) for n in range(len(texts))], "text": texts}, dtype=object)
    return frame if labels is None else frame.assign(label=labels)


def _measure(reference: list[str], train: list[str] | None = None) -> dict[Any, CoverageFigure]:
    return measure_coverage(_frame(train or _texts(600, 1)), _frame(reference), CONFIG)


def test_another_sample_of_the_same_distribution_is_covered_and_not_told_apart() -> None:
    figures = _measure(_texts(300, 2))
    assert figures["coverage"].value > 0.9
    assert figures["auroc"].low <= 0.5 <= figures["auroc"].high
    assert figures["length_distance"].low == 0
    assert figures["script_distance"].value == 0
    assert figures["language_distance"].low == 0
    assert "label_distance" not in figures
    assert figures["auroc"].num_train == 300  # the other half fitted the space
    assert figures["coverage"].num_reference == 300


def test_a_space_fitted_to_few_texts_does_not_tell_them_apart_from_others_like_them() -> None:
    values = [_measure(_texts(100, seed), _texts(100, 50 + seed))["auroc"].value for seed in range(6)]
    assert 0.35 < np.mean(values) < 0.65


def test_texts_about_something_else_are_neither_covered_nor_mistaken() -> None:
    figures = _measure(_texts(300, 2, GOODS))
    assert figures["coverage"].high < 0.5
    assert figures["auroc"].low > 0.9


def test_half_of_the_reference_being_foreign_shows_as_half() -> None:
    figures = _measure(_texts(150, 2) + _texts(150, 3, GOODS))
    assert 0.4 < figures["coverage"].value < 0.75
    assert 0.6 < figures["auroc"].value < 0.9


def test_texts_in_another_script_are_seen_by_every_figure_that_should() -> None:
    table = str.maketrans(
        {letter: chr(ord("а") + number) for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    )
    figures = _measure([text.translate(table) for text in _texts(300, 2)])
    assert figures["coverage"].value == 0
    assert figures["script_distance"].value == 1
    assert figures["length_distance"].value < 0.2


GERMAN = "der die das und nicht aber sehr gut schlecht Film Geschichte Schauspieler ist war ein eine mit über".split()


@pytest.mark.parametrize(("foreign", "expected"), [(0, 0.0), (90, 0.3), (300, 1.0)])
def test_texts_in_another_language_of_the_same_script_are_seen(foreign: int, expected: float) -> None:
    sentences = [f"This is the story of {noun} and of what came of it, and it was not very good" for noun in FILMS]
    ours = [f"{sentence}, {number}" for number in range(20) for sentence in sentences]
    random_german = random.Random(3)
    theirs = [" ".join(random_german.choices(GERMAN, k=14)) for _ in range(foreign)] + ours[: 300 - foreign]
    figure = _measure(theirs, ours)["language_distance"]
    assert figure.value == pytest.approx(expected, abs=0.05)
    assert figure.low <= expected <= figure.high
    assert _measure(theirs, ours)["script_distance"].value == 0


def test_longer_texts_are_told_by_their_length() -> None:
    figures = _measure(_texts(300, 2, length=(15, 25)))
    assert figures["length_distance"].value == 1
    assert figures["length_distance"].low > 0.8


@pytest.mark.parametrize(("positive", "expected"), [(0.5, 0.0), (0.8, 0.3)])
def test_the_mix_of_labels_is_compared_where_both_sets_have_labels(positive: float, expected: float) -> None:
    train, reference = list(dict.fromkeys(_texts(2200, 1)))[:2000], list(dict.fromkeys(_texts(1100, 2)))[:1000]
    labelled = _frame(reference, [int(row < positive * 1000) for row in range(1000)])
    figures = measure_coverage(_frame(train, [row % 2 for row in range(2000)]), labelled, CONFIG)
    figure = figures["label_distance"]
    assert figure.value == pytest.approx(expected, abs=1e-9)
    assert figure.low <= expected <= figure.high


def test_neither_order_nor_copies_nor_empty_texts_change_a_figure() -> None:
    train, reference = _texts(200, 1), _texts(120, 2)
    before = _measure(reference, train)
    more = [*reversed(reference), *[text.upper() for text in reference[:40]], "", " "]
    assert _measure(more, train[::-1]) == before


def test_prompts_count_where_both_sets_have_them() -> None:
    train, reference = (
        _frame(["yes"] * 400).assign(prompt=_texts(400, seed, words)) for seed, words in ((1, FILMS), (2, GOODS))
    )
    assert measure_coverage(train, reference, CONFIG)["auroc"].value > 0.9


@pytest.mark.parametrize(("train", "reference", "named"), [(99, 60, "train: 99 diff"), (100, 49, "reference: 49 diff")])
def test_too_few_texts_are_refused_by_name(train: int, reference: int, named: str) -> None:
    ours = list(dict.fromkeys(_texts(400, 1)))[:train]
    theirs = list(dict.fromkeys(_texts(200, 2)))[:reference]
    with pytest.raises(DataRejected, match=named):
        _measure(theirs, ours)


@given(st.lists(st.integers(0, 8), min_size=2, max_size=40), st.lists(st.integers(0, 8), min_size=2, max_size=40))
def test_the_auroc_is_scikit_learns_and_lies_in_its_interval(low: list[int], high: list[int]) -> None:
    figure = _auroc_of_scores(np.array(low, dtype=float), np.array(high, dtype=float))
    expected = roc_auc_score([0] * len(low) + [1] * len(high), low + high)
    assert figure.value == pytest.approx(expected, abs=1e-4)
    assert figure.low <= figure.value <= figure.high


def test_the_interval_of_the_auroc_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 0.7602  # of two normal distributions one apart: Phi(1 / sqrt 2)
    figures = [_auroc_of_scores(rng.normal(size=60), rng.normal(1, size=80)) for _ in range(400)]
    assert 0.92 < np.mean([figure.low <= truth <= figure.high for figure in figures]) < 0.98


@pytest.mark.parametrize(
    ("text", "expected"), [("Straße 5", "LATIN"), ("привет world", "CYRILLIC"), ("你好 a", "CJK"), ("12 :-)", "NONE")]
)
def test_a_text_has_the_script_of_most_of_its_letters(text: str, expected: str) -> None:
    assert script(text) == expected
