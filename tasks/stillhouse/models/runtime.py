"""The one place that sets PyTorch's process-wide switches."""

import os

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging


def configure_torch(*, threads: int, seed: int) -> None:
    """Make this process reproducible: the same inputs give the same bits in every process with as many threads.

    Seeds Python, NumPy and PyTorch, allows deterministic algorithms only, and silences the progress bars of
    transformers. Call it once, before the first tensor operation; results may depend on ``threads`` (the order in
    which partial sums are added) and on nothing else.

    Args:
        threads: CPU threads within an operation, at least 1.
        seed: Of every random generator.
    """
    # Read by cuBLAS when it is first used; without it, deterministic matrix products raise on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode fills every new tensor by default, so that reads of unset memory show. None of ours are, and
    # the fill costs a pass over each activation.
    torch.utils.deterministic.fill_uninitialized_memory = False
    set_seed(seed)
    transformers_logging.disable_progress_bar()
