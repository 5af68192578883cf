import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from stillhouse.stages.torchrun import exit_code_of_failures

WORKER = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
if os.environ["RANK"] == "1":
    {end}
signal.pause()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("end", "expected"), [("sys.exit(78)", 78), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_the_launcher_ends_as_its_process_did(tmp_path: Path, end: str, expected: int) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER.format(end=end))
    launcher = ("-m", "stillhouse.stages.torchrun", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [sys.executable, *launcher, str(worker)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == expected, done.stderr[-2000:]


@pytest.mark.slow
def test_the_launcher_ends_well_when_all_do(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("")
    command = [sys.executable, "-m", "stillhouse.stages.torchrun", "--standalone", "--nproc-per-node=2", str(worker)]
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0


def failure(exit_code: int, timestamp: int) -> ProcessFailure:
    found = ProcessFailure(local_rank=0, pid=1, exitcode=exit_code, error_file="")
    found.timestamp = timestamp
    return found


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([(70, 5), (78, 4)], 78),
        ([(70, 5), (-9, 5)], 137),
        ([(-15, 4), (78, 5)], 78),
        ([(130, 5), (78, 5)], 78),
        ([(75, 5), (78, 5)], 78),
        ([(-15, 4)], 143),
    ],
)
def test_the_cause_is_told_from_what_it_caused(failures: list[tuple[int, int]], expected: int) -> None:
    assert exit_code_of_failures([failure(*one) for one in failures]) == expected
