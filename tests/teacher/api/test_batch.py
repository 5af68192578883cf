"""Batches answer the same as single requests; one that is under way is collected, whoever submitted it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from teacher_server import SAMPLED, Teacher, prompts

from stillhouse.contract import ConfigurationError, IntegrityError, NotPermitted, TryAgain
from stillhouse.store import FileStore
from stillhouse.teacher.api import ApiWriter, batch
from stillhouse.teacher.ledger import Ledger, ask


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_a_batch_answers_as_single_requests_do(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter], endpoint: str
) -> None:
    how: dict[str, Any] = {"decoding": SAMPLED, "endpoint": endpoint, "top_logprobs": 2}
    wanted = prompts(4, samples=3)
    single, _ = ask(wanted, writer_of(teacher.url, **how), Ledger(FileStore(store.folder / "other")))
    answers, counts = ask(wanted, writer_of(teacher.url, batch=True, **how), Ledger(store))
    assert answers == single
    assert counts.requests == 12
    assert len(teacher.batches) == 1
    assert not store.keys("batches/")


def test_lines_that_were_left_out_are_submitted_again(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    teacher.lose = 2
    answers, counts = ask(prompts(5), writer_of(teacher.url, batch=True), Ledger(store))
    assert len(answers) == 5
    assert counts.requests == 7
    assert set(teacher.asked.values()) == {1}


def test_patience_ends(teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]) -> None:
    teacher.lose = 1000
    with pytest.raises(TryAgain, match="4 times"):
        ask(prompts(2), writer_of(teacher.url, batch=True), Ledger(store))


def test_files_are_no_larger_than_the_server_takes(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MAX_REQUESTS", 2)
    ask(prompts(5), writer_of(teacher.url, batch=True), Ledger(store))
    assert sorted(len(teacher.files[b["input_file_id"]].splitlines()) for b in teacher.batches.values()) == [1, 2, 2]
    monkeypatch.setattr(batch, "MAX_BYTES", 600)
    ask(prompts(4, word="bad"), writer_of(teacher.url, batch=True), Ledger(store))
    sizes = [len(teacher.files[b["input_file_id"]]) for b in list(teacher.batches.values())[3:]]
    assert len(sizes) > 1
    assert all(size <= 600 for size in sizes)


class Killed(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("moment", ["batches.create", "batches.retrieve"])
def test_a_batch_under_way_is_collected_and_not_submitted_again(
    teacher: Teacher,
    store: FileStore,
    writer_of: Callable[..., ApiWriter],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    first = writer_of(teacher.url, batch=True)
    name = moment.partition(".")[2]
    batches = first._client.batches
    real = getattr(batches, name)

    def die(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)  # the server has done it, and the process hears nothing of it
        raise Killed

    monkeypatch.setattr(batches, name, die)
    with pytest.raises(Killed):
        ask(prompts(4), first, Ledger(store))
    assert len(store.keys("batches/")) == 1
    _, counts = ask(prompts(6), writer_of(teacher.url, batch=True), Ledger(store))
    assert len(teacher.batches) == 2
    assert set(teacher.asked.values()) == {1}
    assert counts.requests == 2
    assert not store.keys("batches/")


def test_a_batch_that_the_server_never_got_is_submitted(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = writer_of(teacher.url, batch=True)

    def die(**kwargs: Any) -> Any:
        raise Killed

    monkeypatch.setattr(first._client.batches, "create", die)
    with pytest.raises(Killed):
        ask(prompts(3), first, Ledger(store))
    ask(prompts(3), writer_of(teacher.url, batch=True), Ledger(store))
    assert len(teacher.batches) == 1
    assert not store.keys("batches/")


def test_no_batch_passes_the_ceiling(teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]) -> None:
    with pytest.raises(NotPermitted):
        ask(prompts(6), writer_of(teacher.url, batch=True, ceiling={"requests": 5}), Ledger(store))
    assert not teacher.batches


def _line(teacher: Teacher, name: str, **changes: Any) -> bytes:
    lines = teacher.files[teacher.batches[name]["input_file_id"]].splitlines()
    return json.dumps({"custom_id": json.loads(lines[0])["custom_id"], **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"custom_id": "somebody-else", "response": {"status_code": 200, "body": {}}}, IntegrityError),
        ({"response": {"status_code": 400, "body": {"error": {"code": "too_long"}}}}, ConfigurationError),
        ({"response": {"status_code": 500, "body": {}}}, TryAgain),
        ({"response": {"status_code": 200, "body": {"choices": []}}}, TryAgain),
        ({"response": None, "error": {"code": "batch_expired"}}, TryAgain),
    ],
)
def test_bad_lines_end_with_the_right_error(
    teacher: Teacher,
    store: FileStore,
    writer_of: Callable[..., ApiWriter],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    expected: type[Exception],
) -> None:
    def work(batch: dict[str, Any]) -> None:
        teacher.files[f"out-{batch['id']}"] = _line(teacher, batch["id"], **changes)
        batch.update(status="completed", output_file_id=f"out-{batch['id']}")

    monkeypatch.setattr(teacher, "work_on", work)
    with pytest.raises(expected) as caught:
        ask(prompts(1), writer_of(teacher.url, batch=True), Ledger(store))
    assert "film" not in str(caught.value)
    assert not store.keys("answers/")


@pytest.mark.parametrize(("status", "expected"), [("failed", ConfigurationError), ("cancelled", TryAgain)])
def test_a_batch_that_ended_badly_says_so(
    teacher: Teacher,
    store: FileStore,
    writer_of: Callable[..., ApiWriter],
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    expected: type[Exception],
) -> None:
    def work(batch: dict[str, Any]) -> None:
        batch.update(status=status, errors={"object": "list", "data": [{"code": "invalid_json", "message": "film"}]})

    monkeypatch.setattr(teacher, "work_on", work)
    with pytest.raises(expected, match="batch-0") as caught:
        ask(prompts(1), writer_of(teacher.url, batch=True), Ledger(store))
    assert "film" not in str(caught.value)
