"""A real process that asks is killed in the middle. The server counts: no answered prompt is asked twice."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from teacher_server import Teacher, teacher_server

from stillhouse.store import FileStore

pytestmark = pytest.mark.slow

ANSWERED = 11
CONCURRENCY = 3


def start(teacher: Teacher, store: FileStore, how: str, count: int) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("asking.py")
    return subprocess.Popen([sys.executable, str(script), teacher.url, store.root, how, str(count)])


def test_answered_prompts_are_not_asked_again(teacher: Teacher, store: FileStore) -> None:
    teacher.allowed = ANSWERED
    process = start(teacher, store, "single", 30)
    teacher.wait_until_held(CONCURRENCY)  # every worker waits for its next answer, so the earlier ones are stored
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(store.keys("answers/")) == ANSWERED
    answered = set(teacher.asked)
    teacher.release()
    assert start(teacher, store, "single", 30).wait() == 0
    assert set(teacher.asked.values()) == {1}
    assert len(teacher.asked) == 30
    assert len(answered) == ANSWERED
    assert len(store.keys("answers/")) == 30
    # Held requests were sent, and were never answered.
    assert len(teacher.bodies) == 30 + CONCURRENCY


def test_a_killed_process_finds_its_batch_again(store: FileStore) -> None:
    with teacher_server(polls=10**9) as teacher:
        process = start(teacher, store, "batch", 5)
        with teacher.changed:  # the batch is submitted, and its maker waits for it
            assert teacher.changed.wait_for(lambda: any(b["looked"] for b in teacher.batches.values()), timeout=120)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        teacher.polls = 0
        assert start(teacher, store, "batch", 5).wait() == 0
        assert len(teacher.batches) == 1
        assert sorted(teacher.asked.values()) == [1] * 5
    assert len(store.keys("answers/")) == 5
    assert not store.keys("batches/")
