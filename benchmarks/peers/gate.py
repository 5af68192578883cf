"""One side of a comparison: a training that stops after every few steps until it is asked to go on.

A side is a process of its own. Whatever trainer it runs, the gate closes after each optimizer step that completes what
was asked for: it reports on standard output, and waits for the next number of steps on standard input. No number ends
the process. Needs only torch, so it serves every library's environment.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

WARM_UP_STEPS = 1


class Gate:
    """Counts what a training does, and holds it.

    Args:
        student: Its forward passes are counted, one a step; sequences are documents.
        plan: Documents and tokens before each step and in all, where sequences are more than documents.
    """

    def __init__(self, student: torch.nn.Module | None = None, *, plan: tuple[list[int], list[int]] | None = None):
        # What libraries print must not get into the report.
        self._report = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._plan = plan
        self._documents = self._tokens = self._step = 0
        self._asked = WARM_UP_STEPS
        self._started = _clocks()
        if student is not None:
            student.register_forward_pre_hook(self._count, with_kwargs=True)
        register_optimizer_step_post_hook(self._after_step)

    def _count(self, _module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        self._documents += len(inputs["attention_mask"])
        self._tokens += int(inputs["attention_mask"].sum())

    def _after_step(self, *_: Any) -> None:
        self._step += 1
        self._asked -= 1
        if self._asked:
            return
        seconds, cpu_seconds = (now - then for now, then in zip(_clocks(), self._started, strict=True))
        if self._plan:
            self._documents, self._tokens = (totals[self._step] for totals in self._plan)
        self._tell(
            step=self._step,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            documents=self._documents,
            tokens=self._tokens,
            peak_mib=high_water(),
        )
        line = sys.stdin.readline()
        if not line.strip():
            os._exit(0)  # Nothing of a training that was cut short is wanted.
        self._asked = int(line)
        self._started = _clocks()

    def _tell(self, **report: float) -> None:
        self._report.write(json.dumps(report) + "\n")
        self._report.flush()


def _clocks() -> tuple[float, float]:
    """Return seconds by the wall and of this process's threads."""
    return time.perf_counter(), time.process_time()


def high_water() -> float:
    """Return the most memory that this process ever had, in MiB; needs Linux."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
