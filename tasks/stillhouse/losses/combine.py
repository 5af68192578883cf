"""The whole loss of an arm."""

from dataclasses import dataclass
from typing import Literal

import torch

from stillhouse.contract import StageBug
from stillhouse.losses.hidden import HiddenCosineLoss
from stillhouse.losses.logit import LogitLoss
from stillhouse.recipe import DistillationConfig

Arm = Literal["kd", "sft"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What B sequences should become, T tokens long when padded."""

    labels_B: torch.Tensor
    mask_BT: torch.Tensor
    """1 for a token, 0 for padding."""
    teacher_logits_BC: torch.Tensor | None = None
    teacher_hidden_BTD: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class LossValue:
    """A loss and what it consists of."""

    total: torch.Tensor
    """What the optimizer minimises."""
    terms: dict[str, torch.Tensor]
    """Each term before its weight, detached: ``ce``, ``kd`` (with T^2), ``hidden``."""


class DistillationLoss:
    """``alpha * CE + (1 - alpha) * T^2 * KL_T(teacher || student) + hidden_weight * cosine``.

    Terms are summed over sequences and divided by the number of sequences of the whole optimizer step. So the
    gradients of micro-batches add up to the gradient of one batch, whatever their sizes.
    """

    def __init__(self, config: DistillationConfig) -> None:
        self.logit = LogitLoss(alpha=config.alpha, temperature=config.temperature)
        self.hidden = HiddenCosineLoss(weight=config.hidden_weight) if config.hidden_weight > 0 else None

    @property
    def needs_logits(self) -> bool:
        """Whether the teacher's logits count."""
        return self.logit.alpha < 1

    @property
    def needs_hidden(self) -> bool:
        """Whether last hidden states count, of student and teacher."""
        return self.hidden is not None

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's signal counts at all."""
        return self.needs_logits or self.needs_hidden

    def __call__(
        self, logits_BC: torch.Tensor, hidden_BTD: torch.Tensor | None, targets: Targets, *, num_sequences: int
    ) -> LossValue:
        """Compute the loss of a batch or of one of its micro-batches.

        Args:
            logits_BC: The student's.
            hidden_BTD: The student's last hidden states; None where `needs_hidden` is false.
            targets: With the teacher's signal as far as it is needed.
            num_sequences: In the whole optimizer step: all micro-batches, all processes.

        Raises:
            StageBug: A needed signal is missing.
            ConfigurationError: Hidden states are of different widths.
        """
        if self.needs_logits and targets.teacher_logits_BC is None:
            raise StageBug("the loss needs the teacher's logits and got none")
        teacher_logits_BC = targets.teacher_logits_BC if self.needs_logits else None
        terms = self.logit.terms(logits_BC, targets.labels_B, teacher_logits_BC)
        weights = self.logit.weights
        if self.hidden is not None:
            if hidden_BTD is None or targets.teacher_hidden_BTD is None:
                raise StageBug("the loss needs hidden states of student and teacher and got none")
            terms["hidden"] = self.hidden.term(hidden_BTD, targets.teacher_hidden_BTD, targets.mask_BT)
            weights["hidden"] = self.hidden.weight
        means = {name: term / num_sequences for name, term in terms.items()}
        # A term of weight 0 is reported and left out of the sum: its gradient need not be computed.
        total = torch.stack([weights[name] * mean for name, mean in means.items() if weights[name] > 0]).sum()
        return LossValue(total=total, terms={name: mean.detach() for name, mean in means.items()})


def build_loss(config: DistillationConfig, arm: Arm) -> DistillationLoss:
    """Return the loss of an arm: ``kd`` as configured, ``sft`` with the labels alone.

    A teacher is fine-tuned with the ``sft`` loss too.
    """
    if arm == "kd":
        return DistillationLoss(config)
    return DistillationLoss(config.model_copy(update={"alpha": 1.0, "hidden_weight": 0.0}))
