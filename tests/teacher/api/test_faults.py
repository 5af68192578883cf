"""A proxy that does harm: what passes is tried again, what lasts ends with the right exit code, nothing is made up."""

import threading
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from teacher_server import Teacher, prompts, teacher_proxy

from stillhouse.contract import ConfigurationError, IntegrityError, NotPermitted, TryAgain
from stillhouse.models.answers import Answer
from stillhouse.recipe import ApiConfig
from stillhouse.store import FileStore
from stillhouse.teacher.api import ApiWriter
from stillhouse.teacher.api import retrying as retrying_module
from stillhouse.teacher.api.retrying import Retrying
from stillhouse.teacher.ledger import Ledger, ask

BUSY = {"status": 429, "headers": {"retry-after": "0"}}
PASSING: dict[str, Any] = {
    "429": BUSY,
    "429 until a date": {"status": 429, "headers": {"retry-after": "Thu, 01 Jan 2026 00:00:00 GMT"}},
    "500": {"status": 500},
    "503": {"status": 503},
    "408": {"status": 408},
    "dropped": {"do": "drop"},
    "dropped after the work": {"do": "drop-after"},
    "malformed": {"do": "malformed"},
    "another request's": {"do": "swap"},
    "another model's": {"do": "rename"},
}


@pytest.mark.parametrize("fault", list(PASSING))
def test_what_passes_is_tried_again(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter], fault: str
) -> None:
    undisturbed, _ = ask(prompts(4), writer_of(teacher.url), Ledger(FileStore(store.folder / "other")))
    with teacher_proxy(teacher.url, PASSING[fault], {}, PASSING[fault], PASSING[fault]) as proxy:
        answers, counts = ask(prompts(4), writer_of(proxy.url), Ledger(store))
    assert [answer.text for answer in answers] == [answer.text for answer in undisturbed]
    assert counts.requests == proxy.seen == 7


@pytest.mark.parametrize("fault", list(PASSING))
def test_patience_ends(
    teacher: Teacher,
    store: FileStore,
    writer_of: Callable[..., ApiWriter],
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = IntegrityError if fault in ("another request's", "another model's") else TryAgain
    with teacher_proxy(teacher.url, *[PASSING[fault]] * 50) as proxy, pytest.raises(expected, match="4 x") as caught:
        ask(prompts(3), writer_of(proxy.url, concurrency=1), Ledger(store))
    assert proxy.seen == 4
    assert "film" not in str(caught.value) + caplog.text
    assert not store.keys("answers/")


def test_a_storm_is_weathered_and_nothing_is_asked_twice(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    with teacher_proxy(teacher.url, *[BUSY] * 30) as proxy:
        _, counts = ask(prompts(40), writer_of(proxy.url, concurrency=8, attempts=40), Ledger(store))
    assert counts.requests == 70
    assert set(teacher.asked.values()) == {1}
    assert len(teacher.asked) == 40


def test_nobody_asks_before_the_server_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(threading.Event):
        waits: list[float] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.waits.append(timeout or 0.0)
            return False

    monkeypatch.setattr(retrying_module, "FIRST_PAUSE_SECONDS", 50.0)
    monkeypatch.setattr(retrying_module.random, "uniform", lambda low, high: high)
    tries = iter([_busy("100"), None, None])

    def do() -> None:
        error = next(tries)
        if error:
            raise error

    event = Watched()
    retrying = Retrying(ApiConfig(base_url="http://server/v1", model="m"), event)
    retrying.call(do)
    retrying.call(do)  # of another thread
    first, after_the_refusal, second_try, other = event.waits
    assert first == 0
    assert all(99 < wait <= 100 for wait in (second_try, other))
    assert after_the_refusal > 100  # the server's time, and then a random pause


def _busy(retry_after: str) -> openai.APIStatusError:
    request = httpx2.Request("POST", "http://server/v1/chat/completions")
    response = httpx2.Response(429, headers={"retry-after": retry_after}, request=request)
    return openai.RateLimitError("busy", response=response, body=None)


def test_a_server_that_wants_a_long_rest_is_left_to_the_scheduler(
    teacher: Teacher, writer_of: Callable[..., ApiWriter]
) -> None:
    rest = {"status": 429, "headers": {"retry-after": "3600"}}
    with teacher_proxy(teacher.url, rest) as proxy, pytest.raises(TryAgain, match="3600 s"):
        writer_of(proxy.url, concurrency=1).write(prompts(2), on_answer=lambda answer: None)
    assert proxy.seen == 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 401}, NotPermitted),
        ({"status": 403}, NotPermitted),
        ({"status": 404}, ConfigurationError),
        ({"status": 400, "code": "context_length_exceeded"}, ConfigurationError),
        ({"status": 429, "code": "insufficient_quota"}, NotPermitted),
    ],
)
def test_what_lasts_ends_at_once_and_repeats_no_prompt(
    teacher: Teacher,
    writer_of: Callable[..., ApiWriter],
    fault: dict[str, Any],
    expected: type[Exception],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with teacher_proxy(teacher.url, *[fault] * 9) as proxy, pytest.raises(expected) as caught:
        writer_of(proxy.url, concurrency=1).write(prompts(5), on_answer=lambda answer: None)
    assert proxy.seen == 1
    assert "film" not in str(caught.value) + caplog.text


def test_a_body_that_never_ends_is_given_up(teacher: Teacher, writer_of: Callable[..., ApiWriter]) -> None:
    found: list[Answer] = []
    with teacher_proxy(teacher.url, {"do": "dribble"}) as proxy:
        writer = writer_of(proxy.url, concurrency=1, timeout_seconds=1.0)
        assert writer.write(prompts(1), on_answer=found.append) == 2
    assert len(found) == 1


def test_a_reply_that_was_given_before_is_not_believed(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    undisturbed, _ = ask(prompts(3), writer_of(teacher.url), Ledger(FileStore(store.folder / "other")))
    with teacher_proxy(teacher.url, {}, {"do": "replay"}, {"do": "replay"}) as proxy:
        answers, counts = ask(prompts(3), writer_of(proxy.url, concurrency=1), Ledger(store))
    assert [answer.text for answer in answers] == [answer.text for answer in undisturbed]
    assert counts.requests == 5


def test_what_is_under_way_when_one_request_fails_is_kept(
    teacher: Teacher, store: FileStore, writer_of: Callable[..., ApiWriter]
) -> None:
    teacher.allowed = 0
    with teacher_proxy(teacher.url, {}, {"status": 403}) as proxy:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                ask(prompts(2), writer_of(proxy.url, concurrency=2), Ledger(store))
            except NotPermitted as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        teacher.wait_until_held(1)
        proxy.wait_until_replied(1)
        teacher.release(answered=True)
        thread.join(timeout=120)
    assert len(errors) == 1
    assert len(store.keys("answers/")) == 1
