"""transformers' Trainer with our loss, our batches and nothing in its way."""

from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stillhouse.contract import DataRejected
from stillhouse.losses import DistillationLoss
from stillhouse.training.batches import StepLoader, targets_of
from stillhouse.training.history import HistoryRecorder


class DistillationTrainer(Trainer):
    """Runs `StepLoader` items, one optimizer step each, through a `DistillationLoss`.

    The whole training is one epoch to Trainer, as the loader knows the order of all steps of all passes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        loader: StepLoader,
        loss: DistillationLoss,
        recorder: HistoryRecorder,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(model, args, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self._loader = loader
        self._loss = loss
        self._recorder = recorder

    def get_train_dataloader(self) -> StepLoader:
        """Return the loader as it is: its items are ready-made batches."""
        return self._loader

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: counting walks through all parameters at every step, for a figure that nobody reads."""
        return 0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Run the model on one step's sequences.

        Raises:
            DataRejected: A term is NaN or infinite.
        """
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=self._loss.needs_hidden,
        )
        hidden_BTD = output.hidden_states[-1] if self._loss.needs_hidden else None
        # An item is a whole optimizer step, so its size is the number to normalise by. Trainer's count is of
        # tokens in some models and of sequences in others.
        value = self._loss(output.logits, hidden_BTD, targets_of(inputs), num_sequences=len(inputs["labels"]))
        numbers = torch.stack([*value.terms.values(), value.total.detach()])
        # A NaN that goes unseen for one step is in every weight after it.
        if not bool(torch.isfinite(numbers).all()):
            finite = numbers.isfinite().tolist()
            term = next(name for name, is_finite in zip([*value.terms, "total"], finite, strict=True) if not is_finite)
            raise DataRejected(
                f"the loss is not finite at step {self.state.global_step + 1} (term {term}); "
                "check the data and lower training.learning_rate"
            )
        *terms, loss = numbers.tolist()
        self._recorder.add(loss, dict(zip(value.terms, terms, strict=True)))
        return (value.total, output) if return_outputs else value.total
