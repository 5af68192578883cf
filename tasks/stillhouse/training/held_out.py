"""The loss on held-out data, measured at even distances of a training."""

import time
from typing import Any

import torch
from transformers import TrainerCallback

from stillhouse.contract import ValidationPoint
from stillhouse.models import length_buckets
from stillhouse.recipe import TrainingConfig
from stillhouse.training import parallel
from stillhouse.training.batches import StepLoader
from stillhouse.training.callbacks import Report
from stillhouse.training.history import HistoryRecorder
from stillhouse.training.module import DistillationModel
from stillhouse.training.samples import Samples


def due_steps(total_steps: int, points: int) -> frozenset[int]:
    """Return after how many steps to measure: before the first, after the last, and evenly between.

    Fewer than ``points`` where there are fewer steps.
    """
    if points == 1:
        return frozenset({0})
    return frozenset(round(number * total_steps / (points - 1)) for number in range(points))


class HeldOut(TrainerCallback):
    """Measures the student's cross-entropy without dropout and without a gradient, and so without a trace in it.

    A point is taken when the next step begins, before a checkpoint of the step is written, which thus holds it.

    Args:
        samples: The held-out data.
        config: Of the training.
        loader: Of the training.
        recorder: Gets the points.
        report: Its clock stands still meanwhile.
    """

    def __init__(
        self,
        samples: Samples,
        config: TrainingConfig,
        *,
        loader: StepLoader,
        recorder: HistoryRecorder,
        report: Report,
    ) -> None:
        self._samples = samples
        self._buckets = length_buckets(samples.lengths, config.micro_batch_size or config.batch_size)
        self._due = due_steps(len(loader), config.validation_points)
        self._loader = loader
        self._recorder = recorder
        self._report = report

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the step before, if it is due."""
        self._measure_if_due(state.global_step, kwargs["model"], args.device)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last step."""
        self._measure_if_due(state.global_step, kwargs["model"], args.device)

    def _measure_if_due(self, step: int, module: DistillationModel, device: torch.device) -> None:
        if step not in self._due or step <= self._recorder.validated_step:
            return
        started = time.monotonic()
        targets = int(sum(self._samples.targets))
        loss = self._sum(module, device) / targets
        self._recorder.add_validation(
            ValidationPoint(step=step, tokens=self._loader.tokens[step], loss=loss, targets=targets)
        )
        self._report.stand_still(time.monotonic() - started)

    @torch.no_grad()
    def _sum(self, module: DistillationModel, device: torch.device) -> float:
        """Return the cross-entropy of all targets, to which each process contributes its share of the batches."""
        module.eval()
        rank, processes = parallel.rank(), parallel.num_processes()
        own = self._buckets[rank::processes]
        loss = torch.zeros((), dtype=torch.float64, device=device)
        # Sharded processes need one another at every pass: one with a batch less repeats another in vain.
        for number in range(-(-len(self._buckets) // processes)):
            bucket = own[number] if number < len(own) else self._buckets[0]
            batch = self._samples.micro_batch([[index] for index in bucket]).to(device)
            found = module(batch, None, {})
            if number < len(own):
                loss += found.double()
        return float(parallel.total(loss))
