"""The logit loss of a language model: from what its head is given, never from the logits of a whole batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stillhouse.contract import StageBug
from stillhouse.losses.fused import (
    CHUNK_ELEMENTS,
    HeadGradients,
    LossParts,
    accumulation_dtype,
    check_ids,
    fused_linear_loss,
)
from stillhouse.losses.logit import LogitLoss
from stillhouse.losses.sparse import check_positions, select_positions, slice_positions
from stillhouse.losses.targets import SparseTargets
from stillhouse.models.documents import IGNORED


@dataclass(frozen=True, kw_only=True)
class Head:
    """The last layer of a language model."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    vocabulary: int
    """The number of real tokens; rows of the weight after them are padding, and count as -inf."""

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """Return the logits of R rows for the real tokens, in float32 or float64."""
        dtype = accumulation_dtype(hidden_RD, self.weight_VD)
        bias_V = None if self.bias_V is None else self.bias_V[: self.vocabulary].to(dtype)
        return functional.linear(hidden_RD.to(dtype), self.weight_VD[: self.vocabulary].to(dtype), bias_V)


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
    """Bound of one tensor of logits. The fused loss has at most two at a time, the others about ten."""

    def __call__(
        self,
        hidden_ND: torch.Tensor,
        head: Head,
        labels_N: torch.Tensor,
        teacher: SparseTargets | TeacherStates | None,
        weights_N: torch.Tensor | None = None,
    ) -> LossParts:
        """Compute the loss of N positions.

        Where student and teacher differ in the number of real tokens, both are restricted to those that they share, so
        that no probability is lost to tokens that the student can't say.

        Args:
            hidden_ND: What the student's head is given.
            head: The student's.
            labels_N: Token ids, int64, or `IGNORED`: such a position carries no loss.
            teacher: Of the same N positions; no gradient reaches it. None leaves the soft term out.
            weights_N: Factor of each position's cross-entropy, where the soft term is left out; None: 1.

        Returns:
            Sums; ``total`` is differentiable, once, with respect to hidden states and head.

        Raises:
            DataRejected: A label or target is no real token of the student.
            ConfigurationError: The divergence can't be computed from sparse targets.
            StageBug: The teacher's positions are more or fewer, or both a teacher and weights count.
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
                weights_N=weights_N,
            )
        if weights_N is not None:
            raise StageBug("weights of rows do not reach the divergence from the teacher")
        if isinstance(teacher, SparseTargets):
            check_positions(teacher, len(labels_N))
        elif len(teacher.hidden_NE) != len(labels_N):
            raise StageBug(f"the teacher has states of {len(teacher.hidden_NE)} positions, the student {len(labels_N)}")
        rows_P = (labels_N != IGNORED).nonzero().squeeze(1)
        if len(rows_P) < len(labels_N):
            hidden_ND, labels_N, teacher = hidden_ND[rows_P], labels_N[rows_P], _select(teacher, rows_P)
        vocabulary = head.vocabulary
        if isinstance(teacher, TeacherStates):
            vocabulary = min(vocabulary, teacher.head.vocabulary)
        else:
            check_ids(teacher.ids_K, vocabulary, "the teacher's records")
        check_ids(labels_N, vocabulary, "labels")
        chunks = _Chunks(loss=self, vocabulary=vocabulary, differentiate=torch.is_grad_enabled())
        total, ce, kd = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden_ND, head.weight_VD, head.bias_V, labels_N, teacher, chunks
        )
        return LossParts(total=total, ce=ce, kd=kd)


@dataclass(frozen=True, kw_only=True)
class _Chunks:
    loss: HeadLoss
    vocabulary: int
    differentiate: bool


class _ChunkedLoss(torch.autograd.Function):
    """Any `LogitLoss`, row chunk by row chunk; as in the fused one, the gradients are computed on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        teacher: SparseTargets | TeacherStates,
        chunks: _Chunks,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logit, tokens = chunks.loss.logit, slice(0, chunks.vocabulary)
        needed = tuple(chunks.differentiate and need for need in ctx.needs_input_grad[:3])
        gradients = HeadGradients(hidden_ND, weight_VD, bias_V, needed=needed)
        head = Head(weight_VD=weight_VD, bias_V=bias_V, vocabulary=chunks.vocabulary)
        dtype = accumulation_dtype(hidden_ND, weight_VD)
        ce, kd = (torch.zeros((), dtype=dtype, device=hidden_ND.device) for _ in range(2))
        R = max(1, chunks.loss.chunk_elements // chunks.vocabulary)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight_BD = weight_VD[tokens].to(dtype)
            for start in range(0, len(labels_N), R):
                rows = slice(start, min(start + R, len(labels_N)))
                hidden_RD = hidden_ND[rows].to(dtype)
                logits_RV = head.logits(hidden_RD)
                teacher_part = _part(teacher, rows, chunks.vocabulary)
                with torch.set_grad_enabled(gradients.any):
                    terms = logit.terms(logits_RV.requires_grad_(gradients.any), labels_N[rows], teacher_part)
                    total = logit.weights["ce"] * terms["ce"] + logit.weights["kd"] * terms["kd"]
                if gradients.any:
                    (gradient_RV,) = torch.autograd.grad(total, logits_RV)
                    gradients.add(rows, tokens, gradient_RV, hidden_RD, weight_BD)
                ce += terms["ce"].detach()
                kd += terms["kd"].detach()
        gradients.save(ctx, hidden_ND, weight_VD, bias_V)
        ctx.mark_non_differentiable(ce, kd)
        return logit.weights["ce"] * ce + logit.weights["kd"] * kd, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*HeadGradients.saved(ctx, gradient), None, None, None)


def _select(teacher: SparseTargets | TeacherStates, rows_P: torch.Tensor) -> SparseTargets | TeacherStates:
    if isinstance(teacher, SparseTargets):
        return select_positions(teacher, rows_P)
    return TeacherStates(hidden_NE=teacher.hidden_NE[rows_P], head=teacher.head)


def _part(teacher: SparseTargets | TeacherStates, rows: slice, vocabulary: int) -> SparseTargets | torch.Tensor:
    """Return what is known of the teacher's distributions at some of the positions."""
    if isinstance(teacher, SparseTargets):
        return slice_positions(teacher, rows.start, rows.stop)
    head = Head(weight_VD=teacher.head.weight_VD, bias_V=teacher.head.bias_V, vocabulary=vocabulary)
    return head.logits(teacher.hidden_NE[rows])
