"""The one place that sets PyTorch's process-wide switches."""

import ctypes
import os
import platform

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
"""Of glibc's ``malloc.h``."""
LARGE_BLOCK_BYTES = 1 << 30


def configure_torch(*, threads: int, seed: int) -> None:
    """Make this process reproducible: the same inputs give the same bits in every process with as many threads.

    Seeds Python, NumPy and PyTorch, allows deterministic algorithms only, and silences transformers' bars and
    reports. Call it once, before the first tensor operation; results may depend on ``threads`` (the order in
    which partial sums are added), on the kind of accelerator, and on nothing else. Of several processes that torchrun
    started on a machine, each gets an accelerator of its own, as far as there are enough.

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
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    if (count := torch.accelerator.device_count()) > 1:
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")) % count)
    set_seed(seed)
    transformers_logging.disable_progress_bar()
    # Its report of missing weights is for people at a terminal; `load_model` checks them.
    transformers_logging.set_verbosity_error()


def inference_device() -> torch.device:
    """Return where this process runs models: its accelerator, or the CPU if it sees none.

    ``CUDA_VISIBLE_DEVICES`` and its like decide what a process sees.
    """
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them to the system at every step.

    The gradient of an embedding table is above the size from which glibc maps fresh pages, to be zeroed by the kernel
    one by one: 8% of the time of a MiniLM step. Another C library goes without.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE_BLOCK_BYTES)
