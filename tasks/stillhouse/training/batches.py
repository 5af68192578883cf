"""Which sequences make up each optimizer step, and the tensors of a step."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import DataRejected, StageBug
from stillhouse.losses import DistillationLoss, Targets
from stillhouse.models import encode, pad_batch
from stillhouse.recipe import TrainingConfig
from stillhouse.teacher import CachedRow, TeacherCache

WINDOW_BATCHES = 50
"""Batches' worth of shuffled sequences that are sorted by length together: enough to leave little padding, and still
a different mixture in every epoch."""


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


class StepLoader:
    """Feeds a training, one item per optimizer step, from any step on.

    Everything that can be done once is done here before the first step: tokenization, finding each row in the
    teacher's cache, the order of all batches.
    """

    def __init__(
        self,
        rows: Dataset,
        tokenizer: Tokenizer,
        config: TrainingConfig,
        loss: DistillationLoss,
        teacher: TeacherCache | None,
        num_labels: int,
    ) -> None:
        if len(rows) == 0:
            raise DataRejected("the training set has no rows; check the data section of the recipe")
        if loss.needs_teacher and teacher is None:
            raise StageBug("the loss needs the teacher's signal and the job has no teacher cache")
        self._loss = loss
        self._pad_token_id = tokenizer.pad_token_id
        document_ids = list(rows["id"])
        self._ids = encode(tokenizer, list(rows["text"]), config.max_tokens).ids
        self._labels_N = torch.tensor(list(rows["label"]), dtype=torch.int64)
        outside = ((self._labels_N < 0) | (self._labels_N >= num_labels)).nonzero()
        if len(outside):
            raise DataRejected(f"row {document_ids[int(outside[0])]} has a label outside 0 to {num_labels - 1}; fix it")
        self._teacher = teacher if loss.needs_teacher else None
        self._cached: list[CachedRow] = []
        if self._teacher:
            self._cached = [self._teacher.find(id_, ids) for id_, ids in zip(document_ids, self._ids, strict=True)]
        self.plan = batch_plan(
            [len(ids) for ids in self._ids], batch_size=config.batch_size, epochs=config.epochs, seed=config.seed
        )
        self.steps_per_epoch = math.ceil(len(rows) / config.batch_size)
        self.seen = [0, *np.cumsum([len(batch) for batch in self.plan]).tolist()]
        """Sequences before each step, and in all."""
        self.first_step = 0
        """Where iteration starts: as many steps are done already."""

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.plan[self.first_step :]:
            ids_BT, mask_BT = pad_batch([self._ids[index] for index in batch], self._pad_token_id)
            item: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": self._labels_N[batch]}
            if self._teacher:
                cached = [self._cached[index] for index in batch]
                if self._loss.needs_logits:
                    item["teacher_logits"] = self._teacher.logits(cached)
                if self._loss.needs_hidden:
                    item["teacher_hidden"] = self._teacher.hidden(cached)
            yield item


def targets_of(item: dict[str, Any]) -> Targets:
    """Return what the sequences of a `StepLoader` item should become."""
    return Targets(
        labels_B=item["labels"],
        mask_BT=item["attention_mask"],
        teacher_logits_BC=item.get("teacher_logits"),
        teacher_hidden_BTD=item.get("teacher_hidden"),
    )
