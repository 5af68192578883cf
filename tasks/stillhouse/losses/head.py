"""The logit loss of a language model: from what its head is given, never from the logits of a whole batch."""

from dataclasses import dataclass

import torch

from stillhouse.losses.fused import (
    CHUNK_ELEMENTS,
    LossParts,
    accumulation_dtype,
    fused_linear_loss,
)
from stillhouse.losses.logit import LogitLoss
from stillhouse.losses.targets import SparseTargets


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last layer of a language model."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    vocabulary: int
    """The number of real tokens; rows of the weight after them are padding, and count as -inf."""

    def logits(self, hidden_RD: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Return the first ``vocabulary`` logits of R rows, in float32 or float64."""
        dtype = accumulation_dtype(hidden_RD, self.weight_VD)
        bias_V = None if self.bias_V is None else self.bias_V[:vocabulary].to(dtype)
        return torch.nn.functional.linear(hidden_RD.to(dtype), self.weight_VD[:vocabulary].to(dtype), bias_V)


@dataclass(frozen=True, kw_only=True)
class TeacherStates:
    """A teacher that runs beside the student: what its head is given at N positions, and the head."""

    hidden_NE: torch.Tensor
    """In the teacher's own width."""
    head: Head


@dataclass(frozen=True, kw_only=True)
class HeadLoss:
    """`LogitLoss` on top of a head.

    Forward KL from sparse targets is fused. Every other combination computes logits and loss for a few rows at a time,
    gradients included, so that memory doesn't grow with the number of rows either.
    """

    logit: LogitLoss
    chunk_elements: int = CHUNK_ELEMENTS
    """Bound of the logits that exist at a time."""

    def __call__(
        self,
        hidden_ND: torch.Tensor,
        head: Head,
        labels_N: torch.Tensor,
        teacher: SparseTargets | TeacherStates | None,
    ) -> LossParts:
        """Compute the loss of N positions.

        Where student and teacher differ in the number of real tokens, both are restricted to those that they share, so
        that no probability is lost to tokens that the student can't say.

        Args:
            hidden_ND: What the student's head is given.
            head: The student's.
            labels_N: Token ids, int64, or `IGNORED`: such a position carries no loss.
            teacher: Of the same N positions; no gradient reaches it. None leaves the soft term out.

        Returns:
            Sums; ``total`` is differentiable, once, with respect to hidden states and head.

        Raises:
            DataRejected: A label or target is no real token of the student.
            ConfigurationError: The divergence can't be computed from sparse targets.
        """
        if self.logit.alpha == 1:
            teacher = None
        if teacher is None or (isinstance(teacher, SparseTargets) and self.logit.divergence == "forward-kl"):
            return fused_linear_loss(
                hidden_ND,
                head.weight_VD,
                head.bias_V,
                labels_N,
                teacher,
                alpha=self.logit.alpha,
                temperature=self.logit.temperature,
                vocabulary=head.vocabulary,
                chunk_elements=self.chunk_elements,
            )
        raise NotImplementedError
