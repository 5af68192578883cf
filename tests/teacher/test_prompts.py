"""What a teacher is asked: every row as often as the recipe says, with its words at their places."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from stillhouse.models.answers import Answer, Prompt
from stillhouse.recipe.synthesis import SynthesisConfig
from stillhouse.teacher.prompts import prompts_of, review_prompt

TOPICS = [{"id": f"t{number}", "text": f"topic {number}"} for number in range(7)]
PROBLEMS = [{"id": "a", "prompt": "1 + 1 =", "text": "2"}, {"id": "b", "prompt": "2 + {x} =", "text": "5"}]
TEXTBOOK: dict[str, Any] = {
    "kind": "textbook",
    "prompt": "{style} on {topic} for {audience}",
    "audiences": ("adults", "children"),
    "styles": ("story", "letter", "essay"),
}
JUDGE = {"kind": "judge", "prompt": "{question}|{answer}|{reference}"}


def config(**fields: Any) -> Any:
    return TypeAdapter(SynthesisConfig).validate_python(fields)


def answer(row: str = "a", *, sample: int = 0, text: str = "two", **changes: Any) -> Answer:
    prompt = Prompt(row=row, sample=sample, text="?", system="Be brief.")
    return Answer(prompt=prompt, text=text, prompt_tokens=1, answer_tokens=1, **{"finish": "stop"} | changes)


def test_each_problem_is_asked_as_often_as_there_are_samples() -> None:
    asked = prompts_of(config(kind="traces", prompt="Q: {problem}!", samples=2, system="Think."), PROBLEMS)
    assert [(p.row, p.sample, p.text, p.system) for p in asked] == [
        ("a", 0, "Q: 1 + 1 =!", "Think."),
        ("a", 1, "Q: 1 + 1 =!", "Think."),
        ("b", 0, "Q: 2 + {x} =!", "Think."),
        ("b", 1, "Q: 2 + {x} =!", "Think."),
    ]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "answers", "prompt": "<{prompt}>"}, "<good {label} {text} {>"),
        ({"kind": "rationales", "prompt": "{label}: {text} {text} {json}"}, "yes: good {label} {text} {" * 1),
    ],
)
def test_braces_in_texts_and_templates_stay_as_they_are(fields: dict[str, Any], expected: str) -> None:
    row = {"id": "a", "prompt": "good {label} {text} {", "text": "yes"}
    (asked,) = prompts_of(config(**fields), [row])
    assert asked.text.startswith(expected)
    if fields["kind"] == "rationales":
        assert asked.text == "yes: good {label} {text} { good {label} {text} { {json}"


def test_passages_go_round_topics_audiences_and_styles() -> None:
    asked = prompts_of(config(**TEXTBOOK, passages=42), TOPICS)
    expected = {
        f"{style} on {topic['text']} for {audience}"
        for topic in TOPICS
        for audience in ("adults", "children")
        for style in ("story", "letter", "essay")
    }
    assert {prompt.text for prompt in asked} == expected
    assert len({(prompt.row, prompt.sample) for prompt in asked}) == 42
    other = prompts_of(config(**TEXTBOOK, passages=42, seed=1), TOPICS)
    assert [p.text for p in other] != [p.text for p in asked]
    assert prompts_of(config(**TEXTBOOK, passages=42), TOPICS) == asked


@given(st.integers(1, 100), st.integers(1, 3))
def test_passages_are_spread_evenly_and_more_of_them_keep_the_first(passages: int, samples: int) -> None:
    asked = prompts_of(config(**TEXTBOOK, passages=passages, samples=samples), TOPICS)
    assert len(asked) == passages * samples
    of_topic = Counter(prompt.row for prompt in asked)
    assert max(of_topic.values()) - min(of_topic.get(topic["id"], 0) for topic in TOPICS) <= samples
    assert len({(prompt.row, prompt.sample) for prompt in asked}) == len(asked)
    assert len({(prompt.text, prompt.sample) for prompt in asked}) == len(asked)
    more = prompts_of(config(**TEXTBOOK, passages=passages + 5, samples=samples), TOPICS)
    assert more[: len(asked)] == asked
    # A round has no topic twice, and hardly more of one audience and style than of another.
    first = Counter(prompt.text.split(" on ")[0] for prompt in asked[: len(TOPICS) * samples : samples])
    assert max(first.values()) <= 4


def test_passages_vary_only_what_the_template_names() -> None:
    asked = prompts_of(config(**TEXTBOOK | {"prompt": "On {topic}, {style}"}, passages=42), TOPICS)
    assert len({prompt.text for prompt in asked}) == 21
    assert len({(prompt.text, prompt.sample) for prompt in asked}) == 42


def test_about_the_wanted_share_of_passages_is_rated_and_always_the_same_ones() -> None:
    rated = config(**TEXTBOOK, rating={"prompt": "Rate: {text} {topic}", "share": 0.3})
    answers = [answer(f"t{number % 7}", sample=number, text="A {text}.") for number in range(700)]
    found = [review_prompt(rated, TOPICS[0], given) for given in answers]
    wanted = [prompt for prompt in found if prompt is not None]
    assert 160 < len(wanted) < 260
    assert found == [review_prompt(rated, TOPICS[0], given) for given in answers]
    assert {(prompt.text, prompt.system) for prompt in wanted} == {("Rate: A {text}. {topic}", None)}
    every = config(**TEXTBOOK, rating={"prompt": "{text}", "share": 1.0})
    assert all(review_prompt(every, TOPICS[0], given) for given in answers)


def test_a_judge_sees_every_trace_with_question_and_reference() -> None:
    judged = config(kind="traces", verifier=JUDGE)
    found = review_prompt(judged, PROBLEMS[1], answer("b", sample=3, text="{reference} 5"))
    assert found == Prompt(row="b", sample=3, text="2 + {x} =|{reference} 5|5")


@pytest.mark.parametrize("given_answer", [answer(text=" \n"), answer(finish="refusal")])
def test_nothing_is_asked_about_an_answer_that_is_none(given_answer: Answer) -> None:
    assert review_prompt(config(kind="traces", verifier=JUDGE), PROBLEMS[0], given_answer) is None


@pytest.mark.parametrize("fields", [{"kind": "traces"}, {"kind": "answers"}, {"kind": "rationales"}, TEXTBOOK])
def test_other_recipes_ask_for_no_review(fields: dict[str, Any]) -> None:
    assert review_prompt(config(**fields), PROBLEMS[0], answer()) is None
