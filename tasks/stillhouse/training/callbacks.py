"""What happens beside the optimizer steps: resuming, checkpoints, history, progress."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from stillhouse.contract import HistoryPoint, Progress
from stillhouse.losses import Balancer
from stillhouse.training import parallel
from stillhouse.training.batches import StepLoader
from stillhouse.training.checkpoints import Checkpoint, CheckpointFolder
from stillhouse.training.guards import LossGuard
from stillhouse.training.history import HistoryRecorder
from stillhouse.training.state import capture, restore

PROGRESS_SECONDS = 1.0


class Resume(TrainerCallback):
    """Goes on from a checkpoint when training begins, and writes one when enough time has passed."""

    def __init__(
        self,
        *,
        folder: CheckpointFolder,
        checkpoint: Checkpoint | None,
        seconds: float,
        loader: StepLoader,
        recorder: HistoryRecorder,
        guard: LossGuard,
        balancer: Balancer | None,
    ) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._seconds = seconds
        self._loader = loader
        self._recorder = recorder
        self._guard = guard
        self._balancer = balancer
        self._written_step = 0
        self._written_at = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the checkpoint, the last thing before the first batch."""
        self._written_at = time.monotonic()
        if self._checkpoint is None:
            return
        plain = self._checkpoint.state
        restore(
            self._checkpoint.tensors,
            plain["training"],
            kwargs["model"],
            kwargs["optimizer"],
            kwargs["lr_scheduler"],
        )
        self._recorder.restore(plain["history"])
        self._guard.restore(plain["guard"])
        if self._balancer:
            self._balancer.restore(plain["balancer"])
        self._written_step = state.global_step = self._loader.first_step = self._checkpoint.step
        self._checkpoint = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a checkpoint of the step before: only now its history point is there too."""
        self._write_if_due(state.global_step, {"args": args, **kwargs})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a checkpoint of the last step if one is due, should what follows training fail."""
        self._write_if_due(state.global_step, {"args": args, **kwargs})

    def _write_if_due(self, step: int, objects: dict[str, Any]) -> None:
        if step == self._written_step or not self._time_has_come(objects["args"].device):
            return
        tensors, plain = capture(objects["model"], objects["optimizer"], objects["lr_scheduler"])
        state = {
            "training": plain,
            "history": self._recorder.state(),
            "guard": self._guard.state(),
            "balancer": self._balancer.state() if self._balancer else {},
        }
        if parallel.rank() == 0:
            self._folder.write(Checkpoint(step=step, tensors=tensors, state=state))
        self._written_step = step
        self._written_at = time.monotonic()

    def _time_has_come(self, device: torch.device) -> bool:
        """Ask the first process: a checkpoint is written by all together or not at all."""
        due = parallel.rank() == 0 and time.monotonic() - self._written_at >= self._seconds
        return bool(parallel.total(torch.tensor([int(due)], device=device)))


class Report(TrainerCallback):
    """Records history points and tells how far the training is."""

    def __init__(
        self,
        *,
        loader: StepLoader,
        recorder: HistoryRecorder,
        on_point: Callable[[HistoryPoint], None] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._loader = loader
        self._recorder = recorder
        self._on_point = on_point
        self._on_progress = on_progress
        self._told_at = 0.0
        self._started_at = 0.0
        self.rate = 0.0
        """Tokens per second, of all processes."""
        self.samples_per_second = 0.0
        """Documents per second, of all processes."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started_at = time.monotonic()

    def stand_still(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self._started_at += seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a history point if one is due, and tell the progress about once a second."""
        control.should_log = self._recorder.is_due(state.global_step)
        loader, step, now = self._loader, state.global_step, time.monotonic()
        seconds = max(now - self._started_at, 1e-9)
        self.rate = (loader.tokens[step] - loader.tokens[loader.first_step]) / seconds
        self.samples_per_second = (loader.seen[step] - loader.seen[loader.first_step]) / seconds
        if self._on_progress and (now - self._told_at >= PROGRESS_SECONDS or step == len(loader)):
            self._told_at = now
            left = (loader.tokens[-1] - loader.tokens[step]) / self.rate
            self._on_progress(
                Progress(
                    done=step, total=len(loader), unit="steps", rate=self.rate, rate_unit="tokens", seconds_left=left
                )
            )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Turn Trainer's log into a history point; its summary after the last step is none."""
        if not logs or "learning_rate" not in logs:
            return
        step = state.global_step
        point = self._recorder.close_point(
            step=step,
            epoch=step / self._loader.steps_per_epoch,
            seen=self._loader.seen[step],
            learning_rate=logs["learning_rate"],
            gradient_norm=logs.get("grad_norm"),
        )
        if self._on_point:
            self._on_point(point)
