from collections.abc import Iterator

import pytest
import torch

from stillhouse.models import configure_torch


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    configure_torch(threads=1, seed=0)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
