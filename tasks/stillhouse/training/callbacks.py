"""What happens beside the optimizer steps: resuming, checkpoints, history, progress."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from stillhouse.contract import HistoryPoint, Progress
from stillhouse.training.batches import StepLoader
from stillhouse.training.checkpoints import Checkpoint, CheckpointFolder
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
    ) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._seconds = seconds
        self._loader = loader
        self._recorder = recorder
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
        self._written_step = state.global_step = self._loader.first_step = self._checkpoint.step
        self._checkpoint = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a checkpoint of the step before: only now its history point is there too."""
        self._write_if_due(state.global_step, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write a checkpoint of the last step if one is due, should what follows training fail."""
        self._write_if_due(state.global_step, kwargs)

    def _write_if_due(self, step: int, objects: dict[str, Any]) -> None:
        if step == self._written_step or time.monotonic() - self._written_at < self._seconds:
            return
        tensors, plain = capture(objects["model"], objects["optimizer"], objects["lr_scheduler"])
        state = {"training": plain, "history": self._recorder.state()}
        self._folder.write(Checkpoint(step=step, tensors=tensors, state=state))
        self._written_step = step
        self._written_at = time.monotonic()


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
        """Sequences per second, of this process."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a history point if one is due, and tell the progress about once a second."""
        control.should_log = self._recorder.is_due(state.global_step)
        now = time.monotonic()
        seen, total = self._loader.seen[state.global_step], self._loader.seen[-1]
        self.rate = (seen - self._loader.seen[self._loader.first_step]) / max(now - self._started_at, 1e-9)
        if self._on_progress and (now - self._told_at >= PROGRESS_SECONDS or seen == total):
            self._told_at = now
            left = (total - seen) / self.rate
            self._on_progress(
                Progress(
                    done=state.global_step, total=len(self._loader), unit="steps", rate=self.rate, seconds_left=left
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
