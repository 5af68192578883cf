"""Models answer on the accelerator of their process, as they would on a CPU: on a pretended one, in its own process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import placed
import pytest
import torch

from stillhouse.models import configure_torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models, and ``elsewhere``: what was found about them on a pretended accelerator."""
    made = tmp_path_factory.mktemp("placed")
    placed.write_models(made)
    subprocess.run([sys.executable, placed.__file__, str(made), str(made / "elsewhere")], check=True)
    return made


@pytest.mark.parametrize("way", placed.WAYS)
def test_every_way_to_a_models_numbers_leads_over_the_accelerator_and_back(folder: Path, way: str) -> None:
    here = placed.WAYS[way](folder)
    with np.load(folder / "elsewhere" / f"{way}.npz") as there:
        assert set(there) == set(here)
        for name, expected in here.items():
            # Another attention kernel adds in another order.
            np.testing.assert_allclose(there[name], expected, rtol=1e-2, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("local_rank", "index"), [("0", 0), ("1", 1), ("2", 0)])
def test_each_process_of_a_machine_has_an_accelerator_of_its_own(
    local_rank: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    configure_torch(threads=torch.get_num_threads(), seed=0)
    assert chosen == [index]
