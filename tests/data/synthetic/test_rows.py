"""From kept answers to sets: what the student is asked, what weighs how much, and a control of equal size."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_synthesis import answer

from stillhouse.data import freeze, load_frozen
from stillhouse.data.synthetic.candidates import candidates_of
from stillhouse.data.synthetic.rows import answer_tokens, draw_unfiltered, written_rows
from stillhouse.recipe.synthesis import AnswersConfig, RationalesConfig, TextbookConfig

TRAIN = pd.DataFrame(
    {"id": ["a", "b", "c"], "text": ["good", "bad", "good"], "prompt": ["fine {x}", "awful", "nice"]}, dtype=object
)


def test_answers_and_passages_are_one_row_each() -> None:
    answers = [answer("b", " An answer.\n"), answer("a", "Another.", sample=3)]
    rows = written_rows(candidates_of(answers, TRAIN), AnswersConfig(), teacher="T", train=TRAIN)
    assert rows.to_dict("records") == [
        {"id": "a-3", "text": "Another.", "prompt": "fine {x}", "teacher": "T"},
        {"id": "b-0", "text": "An answer.", "prompt": "awful", "teacher": "T"},
    ]
    topics = TRAIN.drop(columns="prompt")
    plain = written_rows(candidates_of(answers, topics), TextbookConfig(), teacher="T", train=topics)
    assert list(plain.columns) == ["id", "text", "teacher"]
    assert list(written_rows([], AnswersConfig(), teacher="T", train=TRAIN).columns) == [
        "id",
        "text",
        "prompt",
        "teacher",
    ]


def test_labels_and_rationales_are_two_tasks_whose_means_are_weighed() -> None:
    config = RationalesConfig(label_weight=0.8)
    answers = [answer("a", "Since x."), answer("a", "Since y.", sample=1), answer("c", "Since z.")]
    rows = written_rows(candidates_of(answers, TRAIN), config, teacher="T", train=TRAIN)
    assert list(rows["id"]) == ["a-label", "a-0-rationale", "a-1-rationale", "b-label", "c-label", "c-0-rationale"]
    assert list(rows["text"]) == ["good", "Since x.", "Since y.", "bad", "good", "Since z."]
    assert list(rows["prompt"])[:2] == ["fine {x}", "Explain: fine {x}"]
    labels = rows["id"].str.endswith("label")
    assert rows.loc[labels, "weight"].sum() / rows.loc[~labels, "weight"].sum() == pytest.approx(4)
    assert list(rows.loc[labels, "weight"]) == [0.8] * 3
    assert list(rows.loc[labels, "teacher"]) == [""] * 3


def test_written_sets_can_be_frozen(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rows") / "train.parquet"
    candidates = candidates_of([answer("a", "Since x.")], TRAIN)
    for config in (AnswersConfig(), RationalesConfig()):
        rows = written_rows(candidates, config, teacher="T", train=TRAIN)
        freeze(rows, path)
        assert load_frozen(path).to_pandas().to_dict("records") == rows.to_dict("records")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.data())
def test_the_control_is_as_large_as_whole_answers_allow(sizes: list[int], data: st.DataObject) -> None:
    train = pd.DataFrame({"id": ["a"], "text": ["t"], "prompt": ["p"]}, dtype=object)
    pool = candidates_of([answer("a", "x", sample=n, tokens=size) for n, size in enumerate(sizes)], train)
    budget = sum(
        size for size, taken in zip(sizes, data.draw(st.lists(st.booleans(), min_size=40)), strict=False) if taken
    )
    drawn = draw_unfiltered(pool, budget, seed=1)
    assert abs(answer_tokens(drawn) - budget) <= max(sizes) / 2
    assert drawn == [candidate for candidate in pool if candidate in drawn]


def test_another_seed_draws_other_answers() -> None:
    train = pd.DataFrame({"id": ["a"], "text": ["t"], "prompt": ["p"]}, dtype=object)
    pool = candidates_of([answer("a", "x", sample=n, tokens=10) for n in range(100)], train)
    draws = [draw_unfiltered(pool, 300, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert all(len(draw) == 30 for draw in draws)
