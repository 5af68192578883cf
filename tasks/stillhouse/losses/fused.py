"""Cross-entropy and forward KL straight from hidden states, without the logits of a whole batch.

Logits exist for one block of rows and tokens at a time. Their log-sum-exp is gathered block by block (online softmax,
Milakov & Gimelshein 2018), and as a sum of losses has a gradient that is known up to a factor, the gradients with
respect to hidden states and weight are computed in the forward pass (as Liger's fused cross-entropy does, Hsu et al.
2024), so that the backward pass only scales them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from stillhouse.contract import DataRejected
from stillhouse.losses.sparse import entry_positions, select_positions, slice_positions
from stillhouse.losses.targets import SparseTargets
from stillhouse.models.documents import IGNORED

CHUNK_ELEMENTS = 1 << 24
"""Logits that exist at a time: 64 MiB in float32."""
_FEWEST_ROWS = 64
"""Rows below which a block is cut along the vocabulary: products of fewer rows wait for memory, not for arithmetic."""
_ROWS_OF_CUT_BLOCKS = 256


@dataclass(frozen=True, kw_only=True)
class LossParts:
    """Sums over rows."""

    total: torch.Tensor
    """``alpha * ce + (1 - alpha) * kd``, with a gradient; without ``kd`` its weight is not given to ``ce``."""
    ce: torch.Tensor
    """Cross-entropy in nats, detached."""
    kd: torch.Tensor | None
    """Divergence from the teacher with its factor T^2, detached; None where it does not count."""


def fused_linear_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    targets: SparseTargets | None,
    *,
    alpha: float,
    temperature: float,
    vocabulary: int | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> LossParts:
    """Compute ``alpha * CE + (1 - alpha) * T^2 * KL_T(teacher || student)`` of the rows with a label.

    The same as ``LogitLoss`` with ``forward-kl`` on ``hidden @ weight.T + bias``, within float error. Arithmetic is in
    float32, or float64 if an argument is. No tensor has more than ``chunk_elements`` elements, besides those of the
    arguments' sizes: at most two such tensors exist at a time.

    Args:
        hidden_ND: What the student's head is given.
        weight_VD: The head's weight.
        bias_V: The head's bias, if it has one.
        labels_N: Token ids, int64, or `IGNORED`: such a row carries no loss.
        targets: Of N positions; None leaves the soft term out, as ``alpha = 1`` does.
        alpha: Weight of the cross-entropy.
        temperature: T.
        vocabulary: The number of real tokens; those after it are padding and count as -inf. None: all are real.
        chunk_elements: Bound of the logits that exist at a time.

    Returns:
        ``total`` is differentiable, once, with respect to hidden states, weight and bias.

    Raises:
        DataRejected: A label or target is no real token of the student.
    """
    size = len(weight_VD) if vocabulary is None else min(vocabulary, len(weight_VD))
    if alpha == 1:
        targets = None
    rows_P = (labels_N != IGNORED).nonzero().squeeze(1)
    if len(rows_P) < len(labels_N):
        hidden_ND, labels_N = hidden_ND[rows_P], labels_N[rows_P]
        targets = targets and select_positions(targets, rows_P)
    _check_ids(labels_N, size, "labels")
    if targets is not None:
        _check_ids(targets.ids_K, size, "the teacher's records")
    settings = _Settings(
        alpha=alpha,
        temperature=temperature,
        vocabulary=size,
        chunk_elements=chunk_elements,
        differentiate=torch.is_grad_enabled(),
    )
    total, ce, kd = _FusedLinearLoss.apply(hidden_ND, weight_VD, bias_V, labels_N, targets, settings)
    return LossParts(total=total, ce=ce, kd=None if targets is None else kd)


class HeadGradients:
    """Gradients of a sum with respect to a head and its input, gathered block by block."""

    def __init__(
        self, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, *, needed: tuple[bool, ...]
    ) -> None:
        dtype = accumulation_dtype(hidden_ND, weight_VD)
        zeros = [
            torch.zeros(like.shape, dtype=dtype, device=like.device) if need and like is not None else None
            for like, need in zip((hidden_ND, weight_VD, bias_V), needed, strict=True)
        ]
        self.hidden_ND, self.weight_VD, self.bias_V = zeros
        self.any = any(needed)

    def add(
        self, rows: slice, tokens: slice, gradient_RB: torch.Tensor, hidden_RD: torch.Tensor, weight_BD: torch.Tensor
    ) -> None:
        """Add what a block of R rows and B tokens gives, from the gradient with respect to its logits."""
        if self.hidden_ND is not None:
            self.hidden_ND[rows].addmm_(gradient_RB, weight_BD)
        if self.weight_VD is not None:
            self.weight_VD[tokens].addmm_(gradient_RB.T, hidden_RD)
        if self.bias_V is not None:
            self.bias_V[tokens] += gradient_RB.sum(0)

    def save(self, ctx: Any, *inputs: torch.Tensor | None) -> None:
        """Keep the gradients, in the types of the inputs, for `saved`."""
        pairs = zip((self.hidden_ND, self.weight_VD, self.bias_V), inputs, strict=True)
        ctx.save_for_backward(*(None if kept is None or like is None else kept.to(like.dtype) for kept, like in pairs))

    @staticmethod
    def saved(ctx: Any, gradient: torch.Tensor) -> list[torch.Tensor | None]:
        """Return the gradients times that of the sum. They stay as they are: a graph may be used twice."""
        return [None if kept is None else kept * gradient.to(kept.dtype) for kept in ctx.saved_tensors]


def accumulation_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Return float64 if a tensor is of that type, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


@dataclass(frozen=True, kw_only=True)
class _Settings:
    alpha: float
    temperature: float
    vocabulary: int
    chunk_elements: int
    differentiate: bool


class _FusedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        targets: SparseTargets | None,
        settings: _Settings,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        needed = tuple(settings.differentiate and need for need in ctx.needs_input_grad[:3])
        gradients = HeadGradients(hidden_ND, weight_VD, bias_V, needed=needed)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            block = _Blocks(hidden_ND, weight_VD, bias_V, settings, gradients)
            ce, kd = block.run(labels_N, targets)
        gradients.save(ctx, hidden_ND, weight_VD, bias_V)
        ctx.mark_non_differentiable(ce, kd)
        return settings.alpha * ce + (1 - settings.alpha) * kd, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*HeadGradients.saved(ctx, gradient), None, None, None)


class _Blocks:
    """The loss of all rows, one block of logits after another."""

    def __init__(
        self,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        settings: _Settings,
        gradients: HeadGradients,
    ) -> None:
        self.dtype = accumulation_dtype(hidden_ND, weight_VD)
        self.hidden_ND = hidden_ND
        self.weight_VD = weight_VD[: settings.vocabulary]
        self.bias_V = None if bias_V is None else bias_V[: settings.vocabulary].to(self.dtype)
        self.settings = settings
        self.gradients = gradients

    def run(self, labels_N: torch.Tensor, targets: SparseTargets | None) -> tuple[torch.Tensor, torch.Tensor]:
        N, V, limit = len(labels_N), self.settings.vocabulary, self.settings.chunk_elements
        rows = limit // V
        columns = V
        if rows < min(N, _FEWEST_ROWS):
            rows = min(N, _ROWS_OF_CUT_BLOCKS, limit)
            columns = max(1, limit // rows)
        tokens = [slice(start, min(start + columns, V)) for start in range(0, V, columns)]
        ce = torch.zeros((), dtype=self.dtype, device=labels_N.device)
        kd = torch.zeros_like(ce)
        for start in range(0, N, rows):
            stop = min(start + rows, N)
            part = None if targets is None else slice_positions(targets, start, stop)
            row_ce, row_kd = self._rows(slice(start, stop), tokens, labels_N[start:stop], part)
            ce += row_ce
            kd += row_kd
        return ce, kd

    def _rows(self, rows: slice, tokens: list[slice], labels_R: torch.Tensor, targets: SparseTargets | None) -> Any:
        raise NotImplementedError
