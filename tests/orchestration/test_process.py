import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest

from stillhouse.orchestration import process
from stillhouse.orchestration.process import StageProcess

PARENT_WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
{then}
"""


def start(code: str) -> StageProcess:
    return StageProcess([sys.executable, "-c", textwrap.dedent(code)], environment=dict(os.environ))


def test_lines_and_exit_code_arrive() -> None:
    lines: list[str] = []

    code = start("import sys; print('one'); print('zwei ü', file=sys.stderr); sys.exit(65)").follow(lines.append)

    assert code == 65
    assert sorted(lines) == ["one", "zwei ü"]


def test_broken_bytes_do_not_stop_the_log() -> None:
    lines: list[str] = []

    assert start(r"import sys; sys.stdout.buffer.write(b'\xff\nend\n')").follow(lines.append) == 0
    assert lines == ["\ufffd", "end"]


def test_stop_ends_children_too() -> None:
    lines: list[str] = []
    running = start(PARENT_WITH_CHILD.format(then="time.sleep(600)"))

    def on_line(line: str) -> None:
        lines.append(line)
        running.stop()

    assert running.follow(on_line) == -signal.SIGTERM
    assert ended(int(lines[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit on data")
@pytest.mark.parametrize(("asked_mib", "code"), [(64, 0), (1024, 1)])
def test_memory_beyond_the_limit_is_refused(asked_mib: int, code: int) -> None:
    lines: list[str] = []
    running = StageProcess(
        [sys.executable, "-c", f"print(len(bytearray({asked_mib} << 20)))"],
        environment=dict(os.environ),
        memory_gib=0.5,
    )

    assert running.follow(lines.append) == code
    assert lines[-1] == (str(asked_mib << 20) if code == 0 else "MemoryError")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit on data")
def test_children_are_limited_too() -> None:
    child = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'bytearray(1 << 30)']))"
    running = StageProcess([sys.executable, "-c", child], environment=dict(os.environ), memory_gib=0.5)
    assert running.follow(lambda line: None) == 1


def test_child_that_outlives_the_stage_is_ended() -> None:
    lines: list[str] = []

    code = start(PARENT_WITH_CHILD.format(then="import os; os.kill(os.getpid(), 9)")).follow(lines.append)

    assert code == -signal.SIGKILL
    assert ended(int(lines[0]))


def test_stage_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SECONDS_TO_STOP", 0.2)
    running = start("import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)")

    assert running.follow(lambda line: running.stop()) == -signal.SIGKILL


def test_interruption_of_the_follower_stops_the_stage() -> None:
    running = start("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    pids: list[int] = []

    def interrupted(line: str) -> None:
        pids.append(int(line))
        raise TimeoutError

    with pytest.raises(TimeoutError):
        running.follow(interrupted)
    assert ended(pids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_stage_dies_with_a_killed_worker(tmp_path: Path) -> None:
    worker = f"""
        import os
        from stillhouse.orchestration.process import StageProcess
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        stage = StageProcess([{sys.executable!r}, "-c", code], environment=dict(os.environ))
        stage.follow(lambda line: print(line, flush=True))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(worker)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        stage = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    psutil.wait_procs([stage], timeout=20)
    assert ended(stage.pid)


def ended(pid: int) -> bool:
    try:
        found = psutil.Process(pid)
        if found.status() != psutil.STATUS_ZOMBIE:
            psutil.wait_procs([found], timeout=20)
        return not found.is_running() or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_no_thread_is_left_behind() -> None:
    start("print('x')").follow(lambda line: None)

    assert not any(thread.name == "stage-watcher" for thread in threading.enumerate())
