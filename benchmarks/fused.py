"""The loss of a language model's head: ``python benchmarks/fused.py [--rows 256,512,1024] [--out FILE]``.

Forward and backward pass of hidden states and head at SmolLM2-135M's size (width 576, vocabulary 49,152, float32), by
three ways: cross-entropy on the full logits, as in plain training without a teacher (``plain-ce``); cross-entropy and
forward KL on the full logits of student and teacher, without the cost of the teacher itself (``dense-kd``); and the
fused loss on sparse targets (``fused``, at temperatures 1 and 2). The ways alternate in one process, medians of
``--rounds``. Peak memory is what a fresh process grows by, with the head's weight and its gradient (216 MiB) in it; it
needs Linux.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from stillhouse.losses import LogitLoss, SparseTargets, fused_linear_loss

WIDTH, VOCABULARY, KEPT = 576, 49_152, 23


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, SparseTargets]:
    """Return hidden states and weight that want gradients, labels, and as many targets a row as the default keeps."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(rows, WIDTH, generator=generator)
    weight_VD = torch.randn(VOCABULARY, WIDTH, generator=generator) * 0.04
    labels_N = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    first_N1 = torch.randint(0, VOCABULARY, (rows, 1), generator=generator)
    targets = SparseTargets(
        offsets_S=torch.arange(rows + 1) * KEPT,
        ids_K=((first_N1 + 997 * torch.arange(KEPT)) % VOCABULARY).flatten(),
        probabilities_K=torch.rand(rows, KEPT, generator=generator).softmax(-1).flatten(),
    )
    return hidden_ND.requires_grad_(), weight_VD.requires_grad_(), labels_N, targets


def plain_ce(rows: int) -> Callable[[], None]:
    """Cross-entropy on the full logits."""
    hidden_ND, weight_VD, labels_N, _ = inputs(rows)
    return lambda: functional.cross_entropy(hidden_ND @ weight_VD.T, labels_N).backward()


def dense_kd(rows: int) -> Callable[[], None]:
    """Cross-entropy and forward KL on the full logits of both models."""
    hidden_ND, weight_VD, labels_N, _ = inputs(rows)
    loss = LogitLoss(alpha=0.5, temperature=2.0)
    teacher_NV = torch.randn(rows, VOCABULARY)

    def step() -> None:
        terms = loss.terms(hidden_ND @ weight_VD.T, labels_N, teacher_NV)
        ((0.5 * terms["ce"] + 0.5 * terms["kd"]) / rows).backward()

    return step


def fused(rows: int, *, temperature: float) -> Callable[[], None]:
    """Cross-entropy and forward KL, fused."""
    hidden_ND, weight_VD, labels_N, targets = inputs(rows)

    def step() -> None:
        parts = fused_linear_loss(hidden_ND, weight_VD, None, labels_N, targets, alpha=0.5, temperature=temperature)
        (parts.total / rows).backward()

    return step


WAYS: dict[str, Callable[[int], Callable[[], None]]] = {
    "plain-ce": plain_ce,
    "dense-kd": dense_kd,
    "fused T=1": lambda rows: fused(rows, temperature=1.0),
    "fused T=2": lambda rows: fused(rows, temperature=2.0),
}


def peak(way: str, rows: int) -> float:
    """Return how many MiB a fresh process grew by at most."""
    command = [sys.executable, __file__, "--measure", way, "--rows", str(rows)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(way: str, rows: int) -> None:
    """Print by how many MiB this process grows."""
    before = high_water()
    WAYS[way](rows)()
    print(high_water() - before)


def high_water() -> float:
    """Return the most memory that this process ever had, in MiB; rusage would also count the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def compare(rows: int, rounds: int) -> list[dict[str, float | str]]:
    """Return a line for each way."""
    steps = {way: prepare(rows) for way, prepare in WAYS.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way, step in steps.items():
            start = time.perf_counter()
            step()
            if number:  # The first round warms up.
                seconds[way].append(time.perf_counter() - start)
    median = {way: statistics.median(found) for way, found in seconds.items()}
    return [
        {
            "rows": rows,
            "way": way,
            "rows_per_second": rows / median[way],
            "speed_to_plain_ce": median["plain-ce"] / median[way],
            "speed_to_dense_kd": median["dense-kd"] / median[way],
            "peak_mib": peak(way, rows),
        }
        for way in WAYS
    ]


def main() -> None:
    """Compare all ways at each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="256,512,1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.rows.split(",")]
    if arguments.measure:
        measure(arguments.measure, sizes[0])
        return
    print(f"{torch.get_num_threads()} threads\n\n| rows | way | rows/s | x plain CE | x dense KD | peak MiB |")
    print("|---:|---|---:|---:|---:|---:|")
    lines = []
    for size in sizes:
        for line in compare(size, arguments.rounds):
            lines.append(line)
            print(
                "| {rows} | {way} | {rows_per_second:.0f} | {speed_to_plain_ce:.2f} | {speed_to_dense_kd:.2f} "
                "| {peak_mib:.0f} |".format(**line),
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps({"threads": torch.get_num_threads(), "lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
