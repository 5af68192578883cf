"""transformers' Trainer with our loss, our batches and nothing in its way."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stillhouse.losses import Balancer, Count, gradient_norms
from stillhouse.training import parallel
from stillhouse.training.batches import Step, StepLoader
from stillhouse.training.guards import LossGuard
from stillhouse.training.history import HistoryRecorder
from stillhouse.training.module import DistillationModel, LiveTeacher
from stillhouse.training.samples import LanguageSamples, MicroBatch, language_batch
from stillhouse.training.writing import Writer


class DistillationTrainer(Trainer):
    """Runs `Step` after `Step` through a `DistillationModel`.

    The whole training is one epoch to Trainer, as the loader knows the order of all steps of all passes. Nor does it
    know of other processes: `parallelise` is done here, the same way on CPUs and GPUs.
    """

    def __init__(
        self,
        module: DistillationModel,
        args: TrainingArguments,
        *,
        loader: StepLoader,
        recorder: HistoryRecorder,
        guard: LossGuard,
        balancer: Balancer | None,
        teacher: LiveTeacher | None,
        writer: Writer | None,
        shard: bool,
        callbacks: list[TrainerCallback],
    ) -> None:
        module.to(args.device)
        self._parallel: nn.Module = parallel.parallelise(module, shard=shard, device=args.device)
        # Trainer's accelerator takes a module with this mark as it is.
        module._is_accelerate_prepared = True  # type: ignore[assignment]
        super().__init__(module, args, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self._module = module
        self._loader = loader
        self._recorder = recorder
        self._guard = guard
        self._balancer = balancer
        self._teacher = teacher
        self._writer = writer
        if teacher:
            teacher.to(args.device)

    def get_train_dataloader(self) -> StepLoader:
        """Return the loader as it is: its items are whole steps."""
        return self._loader

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: counting walks through all parameters at every step, for a figure that nobody reads."""
        return 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run all micro-batches of a step forward and backward, and return the loss of the whole step.

        Every term is divided by the counts of the whole step, so neither micro-batches nor processes change a
        gradient beyond float error.

        Raises:
            DataRejected: A term is not finite, or explodes.
        """
        step: Step = inputs["step"]
        self._module.train()
        batches, count = self._batches(step, inputs["batches"])
        if self._recorder.measures_gradients(step.number):
            self._measure(batches[0])
        configured = self._module.loss.weights
        weights = self._balancer.weights(configured) if self._balancer else configured
        sums: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches):
            if number + 1 < len(batches):
                with parallel.gradients_stay(self._parallel):
                    value = self._run(batch, count, weights)
            else:
                value = self._run(batch, count, weights)
            for name, term in {"": value.total.detach(), **value.terms}.items():
                sums[name] = sums.get(name, 0.0) + term * (0.0 if step.idle else 1.0)
        numbers = parallel.total(torch.stack(list(sums.values())).float())
        loss, *terms = numbers.tolist()
        told = dict(zip(list(sums)[1:], terms, strict=True))
        self._guard.check(step.number + 1, told)
        self._recorder.add(loss, told)
        return numbers[0]

    def _run(self, batch: MicroBatch, count: Count, weights: Mapping[str, float]) -> Any:
        value = self._parallel(batch, count, weights)
        # Gradients are averaged over the processes; the loss is a sum over them.
        scale = 0.0 if batch.idle else float(parallel.num_processes())
        self.accelerator.backward(value.total * scale)
        return value

    def _batches(self, step: Step, made: list[MicroBatch]) -> tuple[list[MicroBatch], Count]:
        if self._writer and self._writer.writes_in(step.number):
            return self._written(step)
        return [self._judged(batch, step) for batch in made], step.count

    def _written(self, step: Step) -> tuple[list[MicroBatch], Count]:
        """Return a step whose texts the student writes and the live teacher judges."""
        samples, writer = self._loader.samples, self._writer
        assert isinstance(samples, LanguageSamples)
        assert writer is not None
        batches = []
        for sequences in step.sequences:
            written = writer.write([samples.documents[index] for row in sequences for index in row])
            batch = language_batch([[document] for document in written], samples.pad_token_id, causal=True)
            batches.append(self._judged(batch, step))
        own = 0 if step.idle else sum(len(batch.labels) for batch in batches)
        counted = parallel.total(torch.tensor([own], dtype=torch.int64, device=self.args.device))
        return batches, Count(targets=int(counted), documents=step.count.documents)

    def _judged(self, plain: MicroBatch, step: Step) -> MicroBatch:
        """Move a micro-batch to the device, and ask a live teacher for what no cache has said about it."""
        batch = replace(plain, idle=step.idle).to(self.args.device)
        loss = self._module.loss
        unanswered = loss.needs_logits and batch.teacher is None and batch.teacher_logits_MC is None
        if self._teacher and (unanswered or self._teacher.is_tapped):
            return self._teacher.judge(batch, answers=unanswered)
        return batch

    def _measure(self, batch: MicroBatch) -> None:
        """Measure the gradient of each term on one micro-batch, without touching the training."""
        own = Count(targets=len(batch.labels), documents=batch.documents)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            value = self._module(batch, own, self._module.loss.weights, separate=True)
        found = gradient_norms(value.terms, self._module.parameters())
        sums = parallel.total(torch.tensor(list(found.values()), device=self.args.device))
        norms = dict(zip(found, (sums / parallel.num_processes()).tolist(), strict=True))
        if not all(map(math.isfinite, norms.values())):
            return  # the guard is about to say so, with the term's name
        self._recorder.add_gradient_norms(norms)
        if self._balancer:
            self._balancer.update(norms)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm = nn.utils.clip_grad_norm_(self._module.parameters(), self.args.max_grad_norm)
        return parallel.whole(norm)
