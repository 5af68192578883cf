"""Real processes that train together over gloo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stillhouse.contract import ExitCode, TrainingHistory

SCRIPT = Path(__file__).parents[1] / "tiny_ranks.py"


def train(out: Path, *, processes: int, sharding: str = "replicate", die_after: int | None = None) -> int:
    out.mkdir(exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    arguments = [str(SCRIPT), str(out), sharding, *([str(die_after)] if die_after else [])]
    done = subprocess.run([sys.executable, *launcher, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 or die_after, done.stderr[-3000:]
    return done.returncode


def history(out: Path) -> TrainingHistory:
    return TrainingHistory.model_validate_json((out / "history.json").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_processes_train_as_one_does(tmp_path: Path, sharding: str) -> None:
    train(tmp_path / "one", processes=1)
    train(tmp_path / "two", processes=2, sharding=sharding)
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert one.total_steps == two.total_steps > 5
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(
            [getattr(point, name) for point in two.points], [getattr(point, name) for point in one.points], rtol=1e-3
        )
    assert [(p.step, p.tokens, p.targets) for p in two.validation] == [
        (p.step, p.tokens, p.targets) for p in one.validation
    ]
    np.testing.assert_allclose([p.loss for p in two.validation], [p.loss for p in one.validation], rtol=1e-3)
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-3)


PEER = """
import os, sys, torch, torch.distributed as dist
from stillhouse.contract import TryAgain
from stillhouse.training import parallel
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
dist.barrier()
if dist.get_rank() == 1:
    os._exit(0)
try:
    with parallel.lost_peers_explained():
        parallel.total(torch.ones(1))
except TryAgain as error:
    sys.exit(int(error.exit_code))
"""


@pytest.mark.slow
def test_a_lost_peer_is_a_reason_to_try_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PEER, str(tmp_path / "meet")]
    survivor, lost = (subprocess.Popen([*command, str(rank)]) for rank in (0, 1))
    assert lost.wait(timeout=300) == 0
    assert survivor.wait(timeout=300) == ExitCode.TRY_AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_killed_processes_end_like_two_that_never_were(tmp_path: Path, sharding: str) -> None:
    train(tmp_path / "whole", processes=2, sharding=sharding)
    assert train(tmp_path / "killed", processes=2, sharding=sharding, die_after=4) != 0
    train(tmp_path / "killed", processes=2, sharding=sharding)
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert history(tmp_path / "whole") == history(tmp_path / "killed")
