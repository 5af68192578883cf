"""Filters: what they take away, that they say so, and that no order matters that must not."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_synthesis import answer

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.data.synthetic.candidates import Candidate, candidates_of
from stillhouse.data.synthetic.filters import (
    Filter,
    apply_filters,
    duplicates_filter,
    form_filters,
    held_out_filters,
    per_problem_filter,
    repetition,
)
from stillhouse.models.answers import Answer
from stillhouse.recipe import ContaminationConfig
from stillhouse.recipe.synthesis import FilterConfig

NEAR = ContaminationConfig(ngram=2, threshold=0.7)
TRAIN = pd.DataFrame(
    {"id": [f"r{n}" for n in range(6)], "text": ["t"] * 6, "prompt": [f"ask {n}" for n in range(6)]}, dtype=object
)
HELD_OUT = {"test": pd.DataFrame({"id": ["x"], "text": ["one two three"], "prompt": ["ask 1"]}, dtype=object)}


def _kept(texts: Sequence[str], filters: Sequence[Filter], **how: Any) -> list[bool]:
    """Return of each answer, all to one row, whether it passes."""
    candidates = candidates_of([answer("r0", text, sample=n, **how) for n, text in enumerate(texts)], TRAIN)
    kept = {candidate.id for candidate in apply_filters(candidates, filters)[0]}
    return [candidate.id in kept for candidate in candidates]


def _removed_by(config: FilterConfig, one: Answer) -> str | None:
    _, counts = apply_filters(candidates_of([one], TRAIN), form_filters(config))
    return next((count.name for count in counts if count.removed), None)


@pytest.mark.parametrize(
    ("config", "text", "finish", "filter_"),
    [
        ({}, " \n", "stop", "empty"),
        ({}, "", "refusal", "empty"),
        ({}, "I can't help with that.", "refusal", "refusal"),
        ({}, "and so on and", "length", "truncated"),
        ({"truncated": "keep"}, "and so on and", "length", None),
        ({"min_words": 3}, "two words", "stop", "words"),
        ({"max_words": 3}, "one two three four", "stop", "words"),
        ({"min_words": 3, "max_words": 3}, " one  two\nthree ", "stop", None),
        ({"language": "en"}, "Ceci est une phrase écrite en français, bien sûr.", "stop", "language"),
        ({"language": "en"}, "This is a sentence that was written in English.", "stop", None),
        ({"pattern": r"^Answer: \d+$"}, "Answer: x", "stop", "pattern"),
        ({"pattern": r"Answer: \d+"}, "So.\nAnswer: 7", "stop", None),
        ({"max_repetition": 0.2}, "so it goes on and " * 5, "stop", "repetition"),
        ({}, "Nothing is wrong with this one.", "stop", None),
    ],
)
def test_the_first_filter_that_objects_counts_an_answer(
    config: dict[str, Any], text: str, finish: Any, filter_: str | None
) -> None:
    assert _removed_by(FilterConfig(**config), answer("r0", text, finish=finish)) == filter_


def test_settings_that_no_filter_can_be_made_of_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^synthesis\.filters\.pattern is no regular expression"):
        form_filters(FilterConfig(pattern="("))
    with pytest.raises(ConfigurationError, match=r"language: qq can't be identified"):
        form_filters(FilterConfig(language="qq"))


def test_repetition_is_the_share_of_repeated_runs_of_four_words() -> None:
    assert repetition("a b c") == 0
    assert repetition("a b c d e f g") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("a a a a a a a a a") == pytest.approx(5 / 6)


def test_the_first_of_answers_that_almost_equal_one_another_stays() -> None:
    texts = [
        "one two three four five six",
        "ONE two, three four five six!",
        "one two three four five six seven",
        "else",
    ]
    assert _kept(texts, [duplicates_filter(NEAR)]) == [True, False, False, True]
    assert _kept(texts, [duplicates_filter(None)]) == [True, True, True, True]
    assert _kept(["a  B", "A b"], [duplicates_filter(None)]) == [True, False]


def test_equal_answers_to_different_questions_are_no_duplicates() -> None:
    answers = [answer("r0", "yes"), answer("r1", "yes"), answer("r1", "Yes", sample=1)]
    kept, _ = apply_filters(candidates_of(answers, TRAIN), [duplicates_filter(NEAR)])
    assert [candidate.id for candidate in kept] == ["r0-0", "r1-0"]


def test_texts_without_prompts_are_compared_with_all_others() -> None:
    topics = TRAIN.drop(columns="prompt")
    answers = [answer("r0", "a passage about the sea"), answer("r1", "A passage about the sea.")]
    kept, _ = apply_filters(candidates_of(answers, topics), [duplicates_filter(NEAR)])
    assert [candidate.id for candidate in kept] == ["r0-0"]


def test_what_a_held_out_set_has_is_not_learned() -> None:
    answers = [
        answer("r1", "One  two three"),
        answer("r1", "one two three four", sample=1),
        answer("r2", "one two three"),
    ]
    candidates = candidates_of(answers, TRAIN)
    _, counts = apply_filters(candidates, held_out_filters(HELD_OUT, NEAR))
    assert [(count.name, count.removed) for count in counts] == [("held-out", 1), ("near-held-out", 1)]
    warned = held_out_filters(HELD_OUT, NEAR.model_copy(update={"action": "warn"}))
    assert [one.name for one in warned] == ["held-out"]
    assert [one.name for one in held_out_filters(HELD_OUT, None)] == ["held-out"]


def test_the_shortest_answers_to_a_problem_stay_in_their_order() -> None:
    assert _kept(["a b c d", "a b", "a b c", "a z"], [per_problem_filter(2)]) == [False, True, False, True]
    assert _kept(["a b c", "a b"], [per_problem_filter(5)]) == [True, True]


def test_answers_of_no_row_and_answers_given_twice_are_refused() -> None:
    with pytest.raises(DataRejected, match="belong to no row"):
        candidates_of([answer("stranger", "x")], TRAIN)
    with pytest.raises(DataRejected, match="occur in two shards"):
        candidates_of([answer("r0", "x"), answer("r0", "y")], TRAIN)


WORDS = st.lists(st.sampled_from("one two three four five".split()), max_size=12).map(" ".join)
ANSWERS = st.lists(
    st.builds(
        answer,
        st.sampled_from(list(TRAIN["id"])),
        WORDS,
        sample=st.integers(0, 4),
        finish=st.sampled_from(["stop", "length", "refusal"]),
    ),
    max_size=20,
    unique_by=lambda one: (one.prompt.row, one.prompt.sample),
)
FILTERS = [
    *form_filters(FilterConfig(min_words=2, max_words=9, pattern="o", max_repetition=0.2)),
    duplicates_filter(NEAR),
    *held_out_filters(HELD_OUT, NEAR),
]


@settings(max_examples=60)
@given(ANSWERS, st.randoms(use_true_random=False))
def test_filters_add_up_do_nothing_twice_and_know_no_order(answers: list[Answer], rng: Any) -> None:
    chain = [*FILTERS, per_problem_filter(2)]
    candidates = candidates_of(answers, TRAIN)
    kept, counts = apply_filters(candidates, chain)
    assert len(kept) + sum(count.removed for count in counts) == len(answers)
    assert [count.seen for count in counts[1:]] == [count.seen - count.removed for count in counts[:-1]]
    assert apply_filters(kept, chain)[0] == kept
    shuffled: list[Candidate] = candidates_of(rng.sample(answers, len(answers)), TRAIN)
    assert apply_filters(shuffled, chain) == (kept, counts)
