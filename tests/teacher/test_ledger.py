"""Answers are found again, damaged ones are not believed, and no prompt is asked twice."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import AnswerCounts, DataRejected, TryAgain
from stillhouse.models.answers import Answer, Prompt, TokenChoices
from stillhouse.recipe import PricesConfig
from stillhouse.store import FileStore
from stillhouse.teacher.ledger import Ledger, StoredAnswer, answer_key, ask
from stillhouse.teacher.writer import Decoding


class Parrot:
    """Repeats prompts, the last one first; counts what it is asked and may fail after some answers."""

    def __init__(self, *, fails_after: int | None = None, name: str = "parrot") -> None:
        self.identity: Mapping[str, Any] = {"name": name}
        self.asked: list[Prompt] = []
        self.fails_after = fails_after

    def write(self, prompts: Sequence[Prompt], *, on_answer: Callable[[Answer], None]) -> int:
        for number, prompt in enumerate(reversed(prompts)):
            if number == self.fails_after:
                raise TryAgain("the parrot sleeps")
            self.asked.append(prompt)
            on_answer(answer(prompt))
        return len(prompts)


def answer(prompt: Prompt) -> Answer:
    return Answer(
        prompt=prompt,
        text=f" {prompt.text}",
        finish="length" if "long" in prompt.text else "stop",
        prompt_tokens=3,
        answer_tokens=2,
        choices=(TokenChoices(token=" a", alternatives={" a": -0.125, " b": -2.5}),),
    )


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(row=f"r{i}", sample=0, text=text) for i, text in enumerate(texts)]


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def test_answers_come_in_the_order_of_the_prompts_and_are_not_asked_for_again(store: FileStore) -> None:
    wanted = prompts("a", "b", "c")
    parrot, ledger = Parrot(), Ledger(store)
    first, counts = ask(wanted, parrot, ledger, prices=PricesConfig(prompt=1.0, answer=10.0))
    assert [found.prompt for found in first] == wanted
    assert first[0] == answer(wanted[0])
    assert (counts.prompts, counts.from_ledger, counts.requests) == (3, 0, 3)
    assert counts.cost == pytest.approx(3 * (3 * 1.0 + 2 * 10.0) / 1e6)
    again, counts = ask([*wanted, *prompts("d")], parrot, ledger)
    assert again[:3] == first
    assert (counts.prompts, counts.from_ledger, counts.requests) == (4, 3, 1)
    assert sorted(prompt.text for prompt in parrot.asked) == ["a", "b", "c", "d"]


def test_rows_that_ask_the_same_get_one_answer(store: FileStore) -> None:
    parrot = Parrot()
    found, counts = ask(prompts("a", "a"), parrot, Ledger(store))
    assert [answer.prompt.row for answer in found] == ["r0", "r1"]
    assert found[0].text == found[1].text
    assert len(parrot.asked) == 1
    assert (counts.prompts, counts.requests) == (2, 1)


def test_what_came_before_a_failure_is_kept(store: FileStore) -> None:
    with pytest.raises(TryAgain):
        ask(prompts("a", "b", "c"), Parrot(fails_after=2), Ledger(store))
    second = Parrot()
    ask(prompts("a", "b", "c"), second, Ledger(store))
    assert [prompt.text for prompt in second.asked] == ["a"]


def test_another_writer_system_or_sample_is_another_question(store: FileStore) -> None:
    prompt = prompts("a")[0]
    keys = {
        answer_key({"name": "x"}, prompt),
        answer_key({"name": "y"}, prompt),
        answer_key({"name": "x"}, Prompt(row="r0", sample=1, text="a")),
        answer_key({"name": "x"}, Prompt(row="r0", sample=0, text="a", system="s")),
    }
    assert len(keys) == 4
    assert answer_key({"name": "x"}, Prompt(row="other", sample=0, text="a")) in keys


@pytest.mark.parametrize("damage", ["text", "cut", "other"])
def test_a_damaged_answer_is_asked_again_with_a_warning(
    store: FileStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ask(prompts("a", "b"), Parrot(), Ledger(store))
    place, other = (
        f"answers/{key[:2]}/{key}.json" for key in (answer_key({"name": "parrot"}, p) for p in prompts("a", "b"))
    )
    whole = store.get(place)
    damaged = {
        "text": json.dumps(json.loads(whole) | {"text": "forged"}).encode(),
        "cut": whole[:-9],
        "other": store.get(other),
    }
    store.put(place, damaged[damage])
    parrot = Parrot()
    found, _ = ask(prompts("a", "b"), parrot, Ledger(store))
    assert [prompt.text for prompt in parrot.asked] == ["a"]
    assert found[0].text == " a"
    assert "damaged" in caplog.text
    assert store.get(place) == whole


def test_a_check_ends_the_asking_and_sees_every_answer(store: FileStore) -> None:
    seen: list[int] = []

    def check(counts: AnswerCounts) -> None:
        seen.append(counts.truncated)
        if counts.truncated > 1:
            raise DataRejected("too many")

    parrot = Parrot()
    with pytest.raises(DataRejected):
        ask(prompts("a", "long 1", "b", "long 2", "c"), parrot, Ledger(store), check=check)
    assert seen == [0, 1, 1, 2]
    again = Parrot()
    with pytest.raises(DataRejected):
        ask(prompts("a", "long 1", "b", "long 2", "c"), again, Ledger(store), check=check)
    assert again.asked == []


def test_refusals_truncations_and_empty_answers_are_counted(store: FileStore) -> None:
    class Mute(Parrot):
        def write(self, prompts: Sequence[Prompt], *, on_answer: Callable[[Answer], None]) -> int:
            for prompt, (text, finish) in zip(
                prompts, [("", "refusal"), (" \n", "stop"), ("x", "length")], strict=True
            ):
                on_answer(Answer(prompt=prompt, text=text, finish=finish, prompt_tokens=1, answer_tokens=1))  # type: ignore[arg-type]
            return 3

    _, counts = ask(prompts("a", "b", "c"), Mute(), Ledger(store))
    assert (counts.refused, counts.empty, counts.truncated) == (1, 1, 1)


@given(text=st.text(), token=st.text(), number=st.floats(max_value=0, allow_nan=False, allow_infinity=False))
def test_an_answer_survives_the_store(text: str, token: str, number: float) -> None:
    prompt = Prompt(row="r", sample=0, text="a")
    given = Answer(
        prompt=prompt,
        text=text,
        finish="stop",
        prompt_tokens=1,
        answer_tokens=1,
        choices=(TokenChoices(token=token, alternatives={token: number}),),
    )
    stored = StoredAnswer.model_validate_json(StoredAnswer.of("a" * 64, given).model_dump_json())
    assert stored.intact
    assert stored.answer(prompt) == given


def test_greedy_answers_depend_on_no_seed() -> None:
    greedy = [Decoding(temperature=0, top_p=p, max_new_tokens=3, seed=s).identity for p, s in ((1.0, 1), (0.5, 2))]
    assert greedy[0] == greedy[1]
    sampled = [Decoding(temperature=1, top_p=1, max_new_tokens=3, seed=seed).identity for seed in (1, 2)]
    assert sampled[0] != sampled[1]
