"""Programs that pass, programs that don't, and programs that would do harm."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_synthesis import answer

from stillhouse.contract import NotPermitted
from stillhouse.data.synthetic.verifiers import sandbox
from stillhouse.data.synthetic.verifiers.unit_tests import PERMISSION, UnitTests, last_code_block
from stillhouse.recipe.synthesis import UnitTestVerifier

TESTS = "assert double(4) == 8\nassert double('a') == 'aa'\n"
RIGHT = "def double(value):\n    return value + value\n"


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> UnitTests:
    monkeypatch.setenv(PERMISSION, "1")
    return UnitTests(UnitTestVerifier(seconds=1, memory_mib=256))


def _passes(verifier: UnitTests, program: str, tests: str = TESTS) -> bool:
    return verifier.accepts(answer("r", f"Here it is.\n```python\n{program}\n```\nDone."), tests)


def test_without_permission_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "0", "yes"):
        if value is None:
            monkeypatch.delenv(PERMISSION, raising=False)
        else:
            monkeypatch.setenv(PERMISSION, value)
        with pytest.raises(NotPermitted, match=f"set {PERMISSION}=1"):
            UnitTests(UnitTestVerifier())


def test_the_last_closed_fence_holds_the_program() -> None:
    assert last_code_block("```\nfirst\n```\nand\n```python\nsecond\n```\n") == "second\n"
    assert last_code_block("```python\nclosed\n```\n```python\ncut off") == "closed\n"
    assert last_code_block("~~~\nx = '```'\n~~~") == "x = '```'\n"
    assert last_code_block("no fence at all") is None


def test_right_programs_pass_and_wrong_ones_do_not(verifier: UnitTests) -> None:
    assert _passes(verifier, RIGHT)
    assert _passes(verifier, "import math, collections, re, itertools, json, random, datetime\n" + RIGHT)
    assert _passes(verifier, RIGHT + "if __name__ == '__main__':\n    print(double(int(input())))\n")
    assert not _passes(verifier, "def double(value):\n    return 2\n")
    assert not _passes(verifier, "def double(value:\n")
    assert not _passes(verifier, "")
    assert not verifier.accepts(answer("r", RIGHT), TESTS)


@pytest.mark.parametrize(
    "trick",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "raise SystemExit",
        "import os\nos.write(1, b'confined')\nos._exit(0)",
        "import os, contextlib\nfor fd in range(3, 64):\n"
        "    with contextlib.suppress(OSError):\n        os.write(fd, b'0' * 32)\nos._exit(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_ending_early_is_not_passing(verifier: UnitTests, trick: str) -> None:
    assert not _passes(verifier, trick)


def test_what_never_ends_is_ended(verifier: UnitTests) -> None:
    assert not _passes(verifier, "while True:\n    pass")
    assert not _passes(verifier, "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass")
    assert _passes(verifier, RIGHT)


def test_processes_and_threads_are_refused(verifier: UnitTests) -> None:
    for start in ("import os; os.fork()", "import subprocess; subprocess.run(['true'])"):
        assert _passes(verifier, _tried(start), "assert refused")
    assert not _passes(verifier, "import os\nwhile True:\n    os.fork()")


def test_memory_is_bounded(verifier: UnitTests) -> None:
    assert not _passes(verifier, "block = bytearray(300 << 20)", "")
    assert _passes(verifier, "block = bytearray(20 << 20)", "")


def test_nothing_outside_its_folder_can_be_written(verifier: UnitTests, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    target = tmp_path / "mine.txt"
    target.write_text("mine")
    target.chmod(0o666)
    attempts = [
        f"open({str(target)!r}, 'w')",
        f"open({str(target)!r}, 'a')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"os.remove({str(target)!r})",
        f"os.mkdir({str(tmp_path / 'folder')!r})",
        f"os.rename('own', {str(tmp_path / 'own')!r})",
        f"os.symlink('own', {str(tmp_path / 'link')!r})",
        f"os.truncate({str(target)!r}, 0)",
    ]
    for attempt in attempts:
        program = f"import os\nopen('own', 'w').write('x')\n{_tried(attempt)}"
        assert _passes(verifier, program, "assert refused"), attempt
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert target.read_text() == "mine"


def test_files_are_bounded_and_gone_afterwards(verifier: UnitTests) -> None:
    assert not _passes(verifier, "open('big', 'wb').write(bytes(20 << 20))", "")
    assert _passes(verifier, "open('small', 'w').write('x')", "assert open('small').read() == 'x'")
    assert not _passes(verifier, "open('small').read()", "")


def test_it_knows_nothing_of_its_surroundings(verifier: UnitTests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "key")
    program = "import os, sys\nnames = set(os.environ)\nplaces = [p for p in sys.path if 'site-packages' in p]"
    assert _passes(verifier, program, "assert 'SECRET_OF_MINE' not in names\nassert not places")


@pytest.fixture
def listener() -> Iterator[tuple[int, list[int]]]:
    """Port of a server on this machine, and the connections that it got."""
    met: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                met.append(1)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], met
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_there_is_no_network(verifier: UnitTests, listener: tuple[int, list[int]]) -> None:
    port, met = listener
    if verifier._sandbox.missing:
        pytest.skip(f"this machine runs programs {', '.join(verifier._sandbox.missing)}")
    connect = "import socket\n" + _tried(f"socket.create_connection(('127.0.0.1', {port}), 2)")
    assert _passes(verifier, connect, "assert refused")
    assert not met


def test_hashes_do_not_differ_from_run_to_run(verifier: UnitTests) -> None:
    order = "order = ''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    runs = {_passes(verifier, order, f"assert order == {guess!r}") for guess in ["abcdefgh"] for _ in range(3)}
    assert len(runs) == 1


def test_nothing_is_left_running(verifier: UnitTests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "START_SECONDS", 1.0)
    _passes(verifier, "import time\ntime.sleep(600)")
    mine = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"sandbox_child" in _read(path)]
    assert not mine


@pytest.mark.skipif(os.geteuid() != 0, reason="there is nothing to give up")
def test_root_is_given_up(verifier: UnitTests, tmp_path: Path) -> None:
    target = tmp_path / "mine.txt"
    target.write_text("mine")
    program = f"import os\nuser = os.getuid()\n{_tried(f'os.chmod({str(target)!r}, 0o777)')}"
    assert _passes(verifier, program, "assert refused and user")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _tried(statement: str) -> str:
    return f"try:\n    {statement}\nexcept OSError:\n    refused = True"


def test_the_caller_stays_who_it_is(verifier: UnitTests) -> None:
    before = (os.getuid(), os.getcwd())
    _passes(verifier, RIGHT)
    assert (os.getuid(), os.getcwd()) == before


def test_what_the_machine_can_not_keep_away_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PERMISSION, "1")
    monkeypatch.setattr(sandbox, "_isolation", lambda: ())
    verifier = UnitTests(UnitTestVerifier(seconds=1, memory_mib=256))
    assert "generated code runs here with the network" in caplog.text
    assert _passes(verifier, RIGHT)
    assert not _passes(verifier, "import os\nwhile True:\n    os.fork()")
