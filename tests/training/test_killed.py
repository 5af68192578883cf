import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tiny_training.py"


def run(folder: Path, out: Path, *arguments: str) -> int:
    return subprocess.run([sys.executable, str(SCRIPT), str(folder), str(out), *arguments], timeout=300).returncode


@pytest.mark.slow
def test_killed_again_and_again_it_ends_like_one_that_never_was(tmp_path: Path) -> None:
    """Killed after step 5, then while it writes the checkpoint of step 9, each time going on in a new process."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    assert run(whole, tmp_path / "out-whole") == 0
    assert run(cut, tmp_path / "out-cut", "5", "step") == -signal.SIGKILL
    assert run(cut, tmp_path / "out-cut", "9", "checkpoint") == -signal.SIGKILL
    assert list((cut / "workspace" / "checkpoints").glob("unfinished-*"))
    assert run(cut, tmp_path / "out-cut") == 0
    assert (tmp_path / "out-cut" / "resumed_from").read_text() == "8"
    for name in ("model.safetensors", "history.json", "config.json", "tokenizer.json"):
        assert (tmp_path / "out-cut" / name).read_bytes() == (tmp_path / "out-whole" / name).read_bytes()
