"""Student and loss as one module: what is trained, replicated and sharded."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.losses import (
    Classified,
    Count,
    DistillationLoss,
    Head,
    Insides,
    LossValue,
    Predicted,
    TeacherStates,
)
from stillhouse.models import Captured, Tap, TapRequest, head_states, model_shape, output_head, watch_body
from stillhouse.training.samples import MicroBatch


class DistillationModel(nn.Module):
    """Runs the student on a micro-batch and returns its loss.

    The loss is computed within `forward`, since a sharded head is whole there alone.

    Args:
        student: Of any task.
        loss: Its learned projectors are trained too.
        precision: Of the forward and backward passes of the student. The loss itself is in float32.
        vocabulary: Real token ids of student and teacher: rows of a head beyond them are padding.
        last_states: Compare what the body hands to the head, which a teacher's cache holds, instead of what is
            captured in the layers.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        loss: DistillationLoss,
        *,
        precision: torch.dtype,
        vocabulary: int,
        last_states: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.loss = loss
        self._precision = precision
        self._vocabulary = vocabulary
        self._observer: Tap | _LastStates | None = None
        if len(loss.features):
            self._observer = _LastStates(student) if last_states else Tap(student, loss.student_taps)

    def forward(
        self, batch: MicroBatch, count: Count | None, weights: Mapping[str, float], separate: bool = False
    ) -> LossValue | torch.Tensor:
        """See `DistillationLoss.forward`.

        Without a count, the sum of the cross-entropy alone: of held-out data, about which no teacher was asked.
        """
        answer = self._answer(batch)
        if count is None:
            if self._observer is not None:
                self._observer.take()
            return self.loss.cross_entropy(answer)
        insides = None
        if self._observer is not None:
            insides = Insides(
                student=self._observer.take(), teacher=batch.teacher_insides, segments_BT=batch.segments_BT
            )
        value: LossValue = self.loss(answer, insides, count=count, weights=weights, separate=separate)
        return value

    def _answer(self, batch: MicroBatch) -> Classified | Predicted:
        is_language_model = batch.positions_N is not None
        with _autocast(self._precision, batch.segments_BT.device):
            if is_language_model:
                states_BTD = head_states(self.student, **batch.inputs)
            else:
                logits_MC = self.student(**batch.inputs).logits
        if not is_language_model:
            return Classified(
                logits_MC=logits_MC.float(), labels_M=batch.labels, teacher_logits_MC=batch.teacher_logits_MC
            )
        return Predicted(
            hidden_ND=states_BTD.flatten(0, 1)[batch.positions_N],
            head=head_of(self.student, self._vocabulary, dtype=states_BTD.dtype),
            labels_N=batch.labels,
            teacher=batch.teacher,
            weights_N=batch.weights_N,
        )


class LiveTeacher:
    """A teacher that runs beside the student, without gradients.

    Args:
        model: Put into evaluation mode.
        taps: What to capture in it.
        vocabulary: Real token ids of student and teacher.
    """

    def __init__(self, model: PreTrainedModel, taps: TapRequest, *, vocabulary: int) -> None:
        self._model = model.eval()
        self._vocabulary = vocabulary
        self._tap = Tap(model, taps) if taps != TapRequest() else None

    @property
    def is_tapped(self) -> bool:
        """Whether something is captured in the teacher."""
        return self._tap is not None

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        self._model.to(device)

    @torch.no_grad()
    def judge(self, batch: MicroBatch, *, answers: bool) -> MicroBatch:
        """Run the teacher on a micro-batch and return the batch with what it says.

        Args:
            batch: On the teacher's device.
            answers: Also take its distributions; else only what is captured in it.
        """
        if batch.positions_N is None:
            logits_MC = self._model(**batch.inputs).logits.float()
            judged = replace(batch, teacher_logits_MC=logits_MC) if answers else batch
        else:
            states_BTD = head_states(self._model, **batch.inputs)
            states = TeacherStates(
                hidden_NE=states_BTD.flatten(0, 1)[batch.positions_N],
                head=head_of(self._model, self._vocabulary, dtype=states_BTD.dtype),
            )
            judged = replace(batch, teacher=states) if answers else batch
        return replace(judged, teacher_insides=self._tap.take()) if self._tap else judged


def head_of(model: PreTrainedModel, vocabulary: int, *, dtype: torch.dtype) -> Head:
    """Return a language model's head, in a type, for the first ``vocabulary`` token ids."""
    head = output_head(model)
    return Head(
        weight_VD=head.weight_VD.to(dtype),
        bias_V=None if head.bias_V is None else head.bias_V.to(dtype),
        vocabulary=vocabulary,
    )


class _LastStates:
    """Keeps the output of a model's body: what a teacher's cache holds, after a decoder's final norm."""

    def __init__(self, student: PreTrainedModel) -> None:
        self._layer = model_shape(student).layers
        self._states: dict[int, torch.Tensor] = {}
        watch_body(student, self._keep)

    def take(self) -> Captured:
        """Return them, and forget them."""
        captured = Captured(hidden=dict(self._states))
        self._states.clear()
        return captured

    def _keep(self, states_BTD: torch.Tensor) -> None:
        self._states[self._layer] = states_BTD


def _autocast(precision: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device_type=device.type, dtype=precision)
