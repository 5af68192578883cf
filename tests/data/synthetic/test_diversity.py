"""Diversity: against another implementation, and against what is plain to see."""

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from stillhouse.data.synthetic.diversity import SAMPLE, WINDOW, distinct, measure_diversity, self_bleu

WORDS = "the sea is blue and deep so we go on to see".split()
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=15), min_size=2, max_size=8)


@settings(max_examples=60)
@given(TEXTS)
def test_self_bleu_is_what_nltk_makes_of_it(texts: list[list[str]]) -> None:
    smoothing = SmoothingFunction().method1
    expected = statistics.mean(
        sentence_bleu(texts[:row] + texts[row + 1 :], text, smoothing_function=smoothing)
        for row, text in enumerate(texts)
    )
    assert self_bleu(texts) == pytest.approx(expected, abs=1e-6)


def test_windows_make_sets_of_different_size_comparable() -> None:
    rng = random.Random(1)
    vocabulary = [f"w{number}" for number in range(2000)]
    small, large = ([rng.choice(vocabulary) for _ in range(WINDOW * factor)] for factor in (1, 20))
    assert distinct(large) == pytest.approx(distinct(small), abs=0.03)
    assert len(set(large)) / len(large) < 0.2 < distinct(large)
    assert distinct(["a", "b", "a", "c"]) == 0.75
    assert distinct([]) == 0


def test_a_varied_set_is_told_from_a_monotonous_one() -> None:
    rng = random.Random(2)
    vocabulary = [f"w{number}" for number in range(500)]
    varied = [" ".join(rng.choice(vocabulary) for _ in range(30)) for _ in range(60)]
    dull = [f"Once upon a time there was a little {rng.choice(vocabulary)} who lived by the sea." for _ in range(60)]
    lively, boring = (measure_diversity(texts, [""] * 60, None) for texts in (varied, dull))
    assert lively.distinct_1 > boring.distinct_1 + 0.1
    assert lively.distinct_2 > boring.distinct_2 + 0.2
    assert lively.self_bleu + 0.5 < boring.self_bleu
    assert lively.near_duplicates == 0 < boring.near_duplicates


def test_no_order_decides_and_one_text_is_enough() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choice(WORDS) for _ in range(9)) for _ in range(SAMPLE + 50)]
    shuffled = rng.sample(texts, len(texts))
    assert measure_diversity(texts, [""] * len(texts), None) == measure_diversity(shuffled, [""] * len(texts), None)
    alone = measure_diversity(["one text"], [""], None)
    assert (alone.texts, alone.self_bleu, alone.distinct_1) == (1, 0, 1)
