"""The part of the loss that compares hidden states."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from stillhouse.contract import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class HiddenCosineLoss:
    """``1 - cos`` between the last hidden states of student and teacher (Sanh et al. 2019, section 3).

    The distance is averaged over the tokens of a sequence that are no padding, then over sequences: a long text
    counts as much as a short one, as it does in the other terms.
    """

    weight: float
    """Factor of the term."""

    def term(self, hidden_BTD: torch.Tensor, teacher_hidden_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Sum the mean distance of each sequence over the B sequences, before its weight.

        Args:
            hidden_BTD: The student's.
            teacher_hidden_BTD: The teacher's, in any floating type; what it holds at padding is ignored.
            mask_BT: 1 for a token, 0 for padding; every sequence has a token.

        Returns:
            A scalar from 0 to 2 B.

        Raises:
            ConfigurationError: The two widths differ.
        """
        if hidden_BTD.shape[-1] != teacher_hidden_BTD.shape[-1]:
            raise ConfigurationError(
                f"the student is {hidden_BTD.shape[-1]} wide and the teacher {teacher_hidden_BTD.shape[-1]}; "
                "set distillation.hidden_weight to 0"
            )
        similarity_BT = functional.cosine_similarity(hidden_BTD, teacher_hidden_BTD.to(hidden_BTD.dtype), dim=-1)
        mask_BT = mask_BT.to(similarity_BT.dtype)
        return (((1.0 - similarity_BT) * mask_BT).sum(dim=1) / mask_BT.sum(dim=1)).sum()
