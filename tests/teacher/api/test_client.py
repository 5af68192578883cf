"""Answers of a real server with a real model: what is sent, what comes back, what is kept secret."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from teacher_server import GREEDY, SAMPLED, Teacher, prompts, teacher_proxy, teacher_server

from stillhouse.contract import ConfigurationError, NotPermitted
from stillhouse.models.answers import Answer, Prompt
from stillhouse.store import FileStore
from stillhouse.teacher.api import ApiWriter
from stillhouse.teacher.api.key import read_key
from stillhouse.teacher.ledger import Ledger, ask

SECRET = "sk-planted-0123456789"


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_model_answers_greedily_and_the_same_each_time(
    teacher: Teacher, writer_of: Callable[..., ApiWriter], endpoint: str
) -> None:
    found: list[Answer] = []
    writer = writer_of(teacher.url, endpoint=endpoint)
    assert writer.write(prompts(5), on_answer=found.append) == 5
    assert {answer.prompt.row for answer in found} == {f"r{i}" for i in range(5)}
    again: list[Answer] = []
    writer.write(prompts(5), on_answer=again.append)
    texts = [{answer.prompt.row: answer.text for answer in run} for run in (found, again)]
    assert texts[0] == texts[1]
    assert all(answer.answer_tokens <= GREEDY.max_new_tokens and answer.prompt_tokens > 0 for answer in found)
    assert all((answer.finish == "length") == (answer.answer_tokens == GREEDY.max_new_tokens) for answer in found)


def test_samples_of_a_prompt_differ_and_each_has_a_seed(teacher: Teacher, writer_of: Callable[..., ApiWriter]) -> None:
    found: list[Answer] = []
    writer_of(teacher.url, decoding=SAMPLED).write(prompts(1, samples=8), on_answer=found.append)
    assert len({answer.text for answer in found}) > 1
    assert len({body["seed"] for body in teacher.bodies}) == 8
    assert {body["top_p"] for body in teacher.bodies} == {0.9}


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_alternatives_are_the_models_distribution(
    teacher: Teacher, writer_of: Callable[..., ApiWriter], endpoint: str
) -> None:
    found: list[Answer] = []
    writer_of(teacher.url, endpoint=endpoint, top_logprobs=3).write(prompts(2), on_answer=found.append)
    for answer in found:
        assert len(answer.choices) == answer.answer_tokens
        for choice in answer.choices:
            assert len(choice.alternatives) == 3
            assert max(choice.alternatives, key=choice.alternatives.__getitem__) == choice.token  # greedy
            assert 0 < sum(math.exp(value) for value in choice.alternatives.values()) <= 1 + 1e-6


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_the_system_message_comes_first(teacher: Teacher, writer_of: Callable[..., ApiWriter], endpoint: str) -> None:
    asked = [Prompt(row="r", sample=0, text="good film", system="You are bad.")]
    writer_of(teacher.url, endpoint=endpoint).write(asked, on_answer=lambda answer: None)
    (body,) = teacher.bodies
    if endpoint == "chat":
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    else:
        assert body["prompt"] == "You are bad.\n\ngood film"


def test_a_filtered_prompt_is_a_refusal(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    asked = [*prompts(1), *prompts(1, word="forbidden")]
    answers, counts = ask(asked, writer_of(teacher.url), Ledger(store))
    assert [answer.finish == "refusal" for answer in answers] == [False, True]
    assert (counts.refused, counts.empty) == (1, 0)


def test_an_unknown_model_is_a_wrong_configuration(teacher: Teacher, writer_of: Callable[..., ApiWriter]) -> None:
    with pytest.raises(ConfigurationError, match="knows no model 'other'"):
        writer_of(teacher.url, model="other").write(prompts(3), on_answer=lambda answer: None)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    return path


def test_the_key_opens_the_server_and_is_written_nowhere(
    store: FileStore, writer_of: Callable[..., ApiWriter], key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with teacher_server(key=SECRET) as teacher:
        writer = writer_of(teacher.url, key=f"file:{key_file}")
        answers, _ = ask(prompts(3), writer, Ledger(store))
    assert SECRET not in repr(writer.identity)
    assert SECRET not in caplog.text
    assert "film" not in caplog.text
    assert answers[0].text not in caplog.text
    assert all(SECRET.encode() not in store.get(key) for key in store.sizes())


def test_a_refused_key_is_named_by_its_place(
    writer_of: Callable[..., ApiWriter], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_KEY", "sk-wrong-987654")
    with teacher_server(key=SECRET) as teacher, pytest.raises(NotPermitted, match="env:TEACHER_KEY") as caught:
        writer_of(teacher.url, key="env:TEACHER_KEY").write(prompts(1), on_answer=lambda answer: None)
    assert "sk-wrong" not in str(caught.value) + caplog.text
    assert "film" not in str(caught.value) + caplog.text


def test_without_a_reference_no_key_is_sent(
    writer_of: Callable[..., ApiWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with teacher_server(key=SECRET) as teacher, pytest.raises(NotPermitted, match="no key"):
        writer_of(teacher.url).write(prompts(1), on_answer=lambda answer: None)


def test_neither_key_nor_prompt_follows_a_redirect(
    teacher: Teacher, writer_of: Callable[..., ApiWriter], key_file: Path
) -> None:
    with teacher_proxy(teacher.url) as elsewhere:
        moved = {"status": 307, "headers": {"location": f"{elsewhere.url}/chat/completions"}}
        with teacher_proxy(teacher.url, moved) as proxy, pytest.raises(ConfigurationError, match="redirects"):
            writer_of(proxy.url, key=f"file:{key_file}").write(prompts(1), on_answer=lambda answer: None)
    assert elsewhere.seen == 0
    assert teacher.bodies == []


@pytest.mark.parametrize("content", [None, "", " \n", "two words", "sk-ü", "a\nb"])
def test_what_is_no_key_is_refused_by_its_place(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"teacher\.api\.key") as caught:
        read_key(f"file:{path}")
    assert not content or not content.strip() or content.strip() not in str(caught.value)


def test_keys_come_from_the_environment_or_a_file(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", f" {SECRET} ")
    assert read_key("env:SOME_KEY") == read_key(f"file:{key_file}") == SECRET
    assert read_key(None) is None
    with pytest.raises(ConfigurationError, match="ANOTHER_KEY"):
        read_key("env:ANOTHER_KEY")
