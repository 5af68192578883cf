"""Which sequences make up each optimizer step, and what a process gets of them."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stillhouse.contract import ConfigurationError
from stillhouse.losses import Count
from stillhouse.recipe import TrainingConfig
from stillhouse.training.samples import Samples, Sequences

WINDOW_BATCHES = 50
"""Batches' worth of shuffled sequences that are sorted by length together: enough to leave little padding, and still
a different mixture in every epoch."""
STEPS_AHEAD = 2
"""Steps that are made before they are needed."""
OPEN_PACKS = 64
"""Half-filled sequences among which a document finds the fullest that it fits into."""


def batch_plan(lengths: Sequence[int], *, batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """Lay out every optimizer step of a training: the indices of its sequences.

    Each epoch shuffles the sequences, sorts windows of them by length, cuts the windows into batches and shuffles the
    batches. The plan depends on the arguments alone, so all arms of a run see the same batches in the same order.

    Args:
        lengths: Tokens of each sequence.
        batch_size: Sequences per step; the last batch of an epoch may be smaller.
        epochs: May be fractional.
        seed: Of the shuffles.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    num_steps = math.ceil(epochs * math.ceil(len(lengths_N) / batch_size))
    generator = np.random.default_rng(seed)
    plan: list[list[int]] = []
    while len(plan) < num_steps:
        order = generator.permutation(len(lengths_N))
        window = WINDOW_BATCHES * batch_size
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(lengths_N[part], kind="stable")]
            batches += [part[first : first + batch_size].tolist() for first in range(0, len(part), batch_size)]
        plan += [batches[index] for index in generator.permutation(len(batches))]
    return plan[:num_steps]


def pack_plan(
    lengths: Sequence[int], *, max_tokens: int, batch_size: int, epochs: float, seed: int
) -> list[list[list[int]]]:
    """Lay out every optimizer step of a training on packs: the documents of each of its sequences.

    Each epoch shuffles the documents and puts one after the other into the fullest open pack with room for it
    (best fit). The plan depends on the arguments alone. Unlike with `batch_plan`, the steps of an epoch may differ in
    number by a few from one epoch to the next.

    Args:
        lengths: Tokens of each document, at most ``max_tokens``.
        max_tokens: Of a pack.
        batch_size: Packs per step; the last batch of an epoch may be smaller.
        epochs: May be fractional.
        seed: Of the shuffles.
    """
    lengths_N = np.asarray(lengths, dtype=np.int64)
    generator = np.random.default_rng(seed)
    plan: list[list[list[int]]] = []
    for share in [1.0] * math.floor(epochs) + [epochs % 1]:
        packs = _pack(generator.permutation(len(lengths_N)), lengths_N, max_tokens)
        batches = [packs[first : first + batch_size] for first in range(0, len(packs), batch_size)]
        plan += batches[: math.ceil(share * len(batches))]
    return plan


def _pack(order: npt.NDArray[np.int64], lengths_N: npt.NDArray[np.int64], max_tokens: int) -> list[list[int]]:
    """Return the packs in the order in which they were opened."""
    packs: list[list[int]] = []
    open_packs: dict[int, int] = {}
    for document in order.tolist():
        length = int(lengths_N[document])
        fitting = [pack for pack, room in open_packs.items() if room >= length]
        if fitting:
            pack = min(fitting, key=lambda number: (open_packs[number], number))
            packs[pack].append(document)
            open_packs[pack] -= length
        else:
            pack = len(packs)
            packs.append([document])
            open_packs[pack] = max_tokens - length
            if len(open_packs) > OPEN_PACKS:
                del open_packs[min(open_packs, key=lambda number: (open_packs[number], number))]
    return packs


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one process does in one optimizer step."""

    number: int
    """From 0."""
    sequences: list[Sequences]
    """Of each micro-batch."""
    idle: bool
    """The step has fewer sequences than there are processes, and none for this one: it repeats the first in vain."""
    count: Count
    """Of the whole step: all micro-batches, all processes."""


class StepLoader:
    """Feeds a training, one `Step` per optimizer step, from any step on.

    The order of all batches is laid out before the first one, and the same in every process.
    """

    def __init__(
        self, samples: Samples, config: TrainingConfig, *, packed: bool, rank: int = 0, num_processes: int = 1
    ) -> None:
        """Lay out all steps.

        Args:
            samples: What is learned.
            config: Of the training.
            packed: Whether documents may share a sequence.
            rank: Of this process.
            num_processes: In all.

        Raises:
            ConfigurationError: There are more processes than sequences in a step.
        """
        if config.batch_size < num_processes:
            raise ConfigurationError(
                f"training.batch_size is {config.batch_size} for {num_processes} processes; raise it or use fewer"
            )
        shape: dict[str, Any] = {"batch_size": config.batch_size, "epochs": config.epochs, "seed": config.seed}
        if packed:
            self.plan = pack_plan(samples.lengths, max_tokens=config.max_tokens, **shape)
        else:
            self.plan = [[[index] for index in batch] for batch in batch_plan(samples.lengths, **shape)]
        self.samples = samples
        self.steps_per_epoch = max(len(self.plan) / config.epochs, 1.0)
        self._micro = config.micro_batch_size
        self._rank, self._num_processes = rank, num_processes
        documents = [[index for row in step for index in row] for step in self.plan]
        self._counts = [
            Count(targets=sum(samples.targets[index] for index in step), documents=len(step)) for step in documents
        ]
        self.seen = [0, *np.cumsum([count.documents for count in self._counts]).tolist()]
        """Documents before each step, and in all."""
        self.tokens = [0, *np.cumsum([sum(samples.lengths[index] for index in step) for step in documents]).tolist()]
        """Tokens before each step, and in all."""
        self.first_step = 0
        """Where iteration starts: as many steps are done already."""

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield steps with their micro-batches, which a thread makes ahead: the training need not wait for a cache."""
        with ThreadPoolExecutor(1, thread_name_prefix="steps") as maker:
            ahead: deque[Future[dict[str, Any]]] = deque()
            for number in range(self.first_step, len(self.plan)):
                ahead.append(maker.submit(self._make, number))
                if len(ahead) > STEPS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _make(self, number: int) -> dict[str, Any]:
        step = self.step(number)
        return {"step": step, "batches": [self.samples.micro_batch(sequences) for sequences in step.sequences]}

    def step(self, number: int) -> Step:
        """Return this process's part of a step."""
        own = self.plan[number][self._rank :: self._num_processes]
        idle = not own
        own = own or self.plan[number][:1]
        size = self._micro or len(own)
        return Step(
            number=number,
            sequences=[own[first : first + size] for first in range(0, len(own), size)],
            idle=idle,
            count=self._counts[number],
        )
