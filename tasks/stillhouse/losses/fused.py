"""Cross-entropy and forward KL straight from hidden states, without the logits of a whole batch.

Logits exist for one block of rows and tokens at a time. Their log-sum-exp is gathered block by block (online softmax,
Milakov & Gimelshein 2018), and as a sum of losses has a gradient that is known up to a factor, the gradients with
respect to hidden states and weight are computed in the forward pass (as Liger's fused cross-entropy does, Hsu et al.
2024), so that the backward pass only scales them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from stillhouse.contract import DataRejected, StageBug
from stillhouse.losses.sparse import check_positions, entry_positions, select_positions, slice_positions
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
    """Cross-entropy in nats, each row times its weight, detached."""
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
    weights_N: torch.Tensor | None = None,
) -> LossParts:
    """Compute ``alpha * CE + (1 - alpha) * T^2 * KL_T(teacher || student)`` of the rows with a label.

    The same as ``LogitLoss`` with ``forward-kl`` on ``hidden @ weight.T + bias``, within float error. Arithmetic is in
    float32, or float64 if hidden states or weight are. Apart from tensors as large as an argument, none has more than
    ``chunk_elements`` elements, and at most two of that size exist at a time.

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
        weights_N: Factor of each row's cross-entropy, without targets; None: 1.

    Returns:
        ``total`` is differentiable, once, with respect to hidden states, weight and bias.

    Raises:
        DataRejected: A label or target is no real token of the student.
        StageBug: There are targets of more or fewer positions, or both targets and weights.
    """
    size = len(weight_VD) if vocabulary is None else min(vocabulary, len(weight_VD))
    if alpha == 1:
        targets = None
    if targets is not None:
        check_positions(targets, len(labels_N))
        if weights_N is not None:
            raise StageBug("weights of rows do not reach the divergence from the teacher")
    rows_P = (labels_N != IGNORED).nonzero().squeeze(1)
    if len(rows_P) < len(labels_N):
        hidden_ND, labels_N = hidden_ND[rows_P], labels_N[rows_P]
        targets = targets and select_positions(targets, rows_P)
        weights_N = None if weights_N is None else weights_N[rows_P]
    check_ids(labels_N, size, "labels")
    if targets is not None:
        check_ids(targets.ids_K, size, "the teacher's records")
    settings = _Settings(
        alpha=alpha,
        temperature=temperature,
        vocabulary=size,
        chunk_elements=chunk_elements,
        differentiate=torch.is_grad_enabled(),
    )
    total, ce, kd = _FusedLinearLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, labels_N, targets, weights_N, settings
    )
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
        """Keep the gradients for `saved`, as they are: a sum over many rows may not fit into float16."""
        ctx.dtypes = [None if like is None else like.dtype for like in inputs]
        ctx.save_for_backward(self.hidden_ND, self.weight_VD, self.bias_V)

    @staticmethod
    def saved(ctx: Any, gradient: torch.Tensor) -> list[torch.Tensor | None]:
        """Scale the gradients by that of the sum, in new tensors of the inputs' types: a graph may be used again."""
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return [None if kept is None else (kept * gradient).to(dtype) for kept, dtype in pairs]


def accumulation_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """Return float64 if a tensor is of that type, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def plan_blocks(*, N: int, V: int, chunk_elements: int) -> tuple[int, list[slice]]:
    """Return how many rows to compute at a time, and in which blocks of the vocabulary: one, if there is room."""
    rows, tokens = chunk_elements // V, V
    if rows < min(N, _FEWEST_ROWS):
        rows = min(N, _ROWS_OF_CUT_BLOCKS, chunk_elements)
        tokens = chunk_elements // rows
    return max(rows, 1), [slice(start, min(start + tokens, V)) for start in range(0, V, tokens)]


def check_ids(ids_K: torch.Tensor, vocabulary: int, what: str) -> None:
    """Refuse tokens that the student's head can't say.

    Raises:
        DataRejected: One is out of range.
    """
    if len(ids_K) and not 0 <= int(ids_K.min()) <= int(ids_K.max()) < vocabulary:
        raise DataRejected(f"{what} name tokens outside of the vocabulary of {vocabulary}; check the tokenizer")


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
        weights_N: torch.Tensor | None,
        settings: _Settings,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        needed = tuple(settings.differentiate and need for need in ctx.needs_input_grad[:3])
        gradients = HeadGradients(hidden_ND, weight_VD, bias_V, needed=needed)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            blocks = _Blocks(hidden_ND, weight_VD, bias_V, settings, gradients)
            ce, kd = blocks.run(labels_N, targets, weights_N)
        gradients.save(ctx, hidden_ND, weight_VD, bias_V)
        ctx.mark_non_differentiable(ce, kd)
        return settings.alpha * ce + (1 - settings.alpha) * kd, ce, kd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*HeadGradients.saved(ctx, gradient), None, None, None, None)


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
        self.hard, self.soft = _Scratch(), _Scratch()

    def run(
        self, labels_N: torch.Tensor, targets: SparseTargets | None, weights_N: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of both terms."""
        rows, blocks = plan_blocks(
            N=len(labels_N), V=self.settings.vocabulary, chunk_elements=self.settings.chunk_elements
        )
        ce = torch.zeros((), dtype=self.dtype, device=labels_N.device)
        kd = torch.zeros_like(ce)
        for start in range(0, len(labels_N), rows):
            stop = min(start + rows, len(labels_N))
            picks = _Picks(
                labels_N[start:stop],
                None if targets is None else slice_positions(targets, start, stop),
                None if weights_N is None else weights_N[start:stop].to(self.dtype),
                self.dtype,
            )
            ce += self._rows(slice(start, stop), blocks, picks, kd)
        return ce, kd

    def _rows(self, rows: slice, blocks: list[slice], picks: "_Picks", kd: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of R rows, add their divergence to ``kd``, and their gradients to the sums."""
        hidden_RD = self.hidden_ND[rows].to(self.dtype)
        softmax = _Softmax(picks, self.settings.temperature, self.soft)
        for block in blocks:
            weight_BD = self.weight_VD[block].to(self.dtype)
            hard_RB, soft_RB = softmax.add(block, self._logits(hidden_RD, weight_BD, block))
        ce, divergence = softmax.losses()
        kd += divergence
        if not self.gradients.any:
            return ce
        for block in blocks:
            if len(blocks) > 1:
                weight_BD = self.weight_VD[block].to(self.dtype)
                hard_RB, soft_RB = softmax.exponentials(self._logits(hidden_RD, weight_BD, block))
            gradient_RB = softmax.gradient(block, hard_RB, soft_RB, self.settings.alpha)
            self.gradients.add(rows, block, gradient_RB, hidden_RD, weight_BD)
        return ce

    def _logits(self, hidden_RD: torch.Tensor, weight_BD: torch.Tensor, block: slice) -> torch.Tensor:
        out_RB = self.hard.like(hidden_RD, len(hidden_RD), len(weight_BD))
        if self.bias_V is None:
            return torch.mm(hidden_RD, weight_BD.T, out=out_RB)
        return torch.addmm(self.bias_V[block], hidden_RD, weight_BD.T, out=out_RB)


class _Scratch:
    """Memory that one block after another is written to: fresh memory costs as much as arithmetic on it."""

    def __init__(self) -> None:
        self.flat = torch.empty(0)

    def like(self, tensor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Return a matrix of any content, of a tensor's type; the one before is no longer valid."""
        if len(self.flat) < rows * columns:
            self.flat = tensor.new_empty(rows * columns)
        return self.flat[: rows * columns].view(rows, columns)


class _Picks:
    """Labels and targets of R rows: the few logits that count by themselves."""

    def __init__(
        self,
        labels_R: torch.Tensor,
        targets: SparseTargets | None,
        weights_R: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.rows_R = torch.arange(len(labels_R), device=labels_R.device)
        self.labels_R = labels_R
        self.label_logits_R = torch.zeros(len(labels_R), dtype=dtype, device=labels_R.device)
        self.targets = targets
        self.weights_R = weights_R
        if targets is not None:
            self.rows_K = entry_positions(targets)
            self.p_K = targets.probabilities_K.to(dtype)
            self.logits_K = torch.zeros_like(self.p_K)
            self.mass_R1 = torch.zeros_like(self.label_logits_R).index_add_(0, self.rows_K, self.p_K).unsqueeze(1)

    def read(self, block: slice, logits_RB: torch.Tensor) -> None:
        """Note the logits that are in a block of tokens."""
        here_L, at = _within(block, self.rows_R, self.labels_R)
        self.label_logits_R[here_L] = logits_RB[at]
        if self.targets is not None:
            here_K, at = _within(block, self.rows_K, self.targets.ids_K)
            self.logits_K[here_K] = logits_RB[at]

    def subtract(self, block: slice, gradient_RB: torch.Tensor, label: float, target: float) -> None:
        """Subtract a number at the labels of a block of tokens, and a multiple of the probabilities at its targets."""
        if label > 0:
            here_L, at = _within(block, self.rows_R, self.labels_R)
            gradient_RB[at] -= label if self.weights_R is None else label * self.weights_R[here_L]
        if self.targets is not None:
            here_K, at = _within(block, self.rows_K, self.targets.ids_K)
            gradient_RB[at] -= target * self.p_K[here_K]


class _Softmax:
    """Online softmax of R rows at temperatures 1 and T; T is of no concern where there are no targets."""

    def __init__(self, picks: _Picks, temperature: float, scratch: _Scratch) -> None:
        self.picks = picks
        self.scratch = scratch
        self.temperature = 1.0 if picks.targets is None else temperature
        self.maximum_R1 = torch.full_like(picks.label_logits_R, -torch.inf).unsqueeze(1)
        self.hard_sum_R1 = torch.zeros_like(self.maximum_R1)
        self.soft_sum_R1 = torch.zeros_like(self.maximum_R1)

    def add(self, block: slice, logits_RB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in a block of tokens; return its `exponentials`, valid as long as no other block follows."""
        self.picks.read(block, logits_RB)
        maximum_R1 = torch.maximum(self.maximum_R1, logits_RB.amax(1, keepdim=True))
        shrunk_R1 = self.maximum_R1 - maximum_R1
        self.maximum_R1 = maximum_R1
        hard_RB, soft_RB = self.exponentials(logits_RB)
        self.hard_sum_R1 = self.hard_sum_R1 * shrunk_R1.exp() + hard_RB.sum(1, keepdim=True)
        if soft_RB is hard_RB:
            self.soft_sum_R1 = self.hard_sum_R1
        else:
            shrunk_R1 = (shrunk_R1 / self.temperature).exp()
            self.soft_sum_R1 = self.soft_sum_R1 * shrunk_R1 + soft_RB.sum(1, keepdim=True)
        return hard_RB, soft_RB

    def exponentials(self, logits_RB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return exp(z - maximum) in the place of z, and exp((z - maximum) / T), which is the same tensor at T = 1."""
        logits_RB.sub_(self.maximum_R1)
        if self.temperature == 1:
            hard_RB = logits_RB.exp_()
            return hard_RB, hard_RB
        out_RB = self.scratch.like(logits_RB, *logits_RB.shape)
        soft_RB = torch.mul(logits_RB, 1 / self.temperature, out=out_RB).exp_()
        return logits_RB.exp_(), soft_RB

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums of cross-entropy and T^2 times the divergence."""
        T, picks = self.temperature, self.picks
        ce_R = (self.maximum_R1 + self.hard_sum_R1.log()).squeeze(1).sub_(picks.label_logits_R)
        ce = (ce_R if picks.weights_R is None else ce_R * picks.weights_R).sum()
        if picks.targets is None:
            return ce, torch.zeros_like(ce)
        lse_R = (self.maximum_R1 / T + self.soft_sum_R1.log()).squeeze(1)
        log_q_K = picks.logits_K / T - lse_R[picks.rows_K]
        return ce, T**2 * (picks.p_K * (picks.p_K.log() - log_q_K)).sum()

    def gradient(self, block: slice, hard_RB: torch.Tensor, soft_RB: torch.Tensor, alpha: float) -> torch.Tensor:
        """Return ``alpha w (p - onehot) + (1 - alpha) T (m q - t)`` in the place of an exponential."""
        hard_R1 = alpha / self.hard_sum_R1
        if self.picks.weights_R is not None:
            hard_R1 = hard_R1 * self.picks.weights_R.unsqueeze(1)
        if self.picks.targets is None:
            gradient_RB = hard_RB.mul_(hard_R1)
        else:
            soft_R1 = (1 - alpha) * self.temperature * self.picks.mass_R1 / self.soft_sum_R1
            if soft_RB is hard_RB:
                gradient_RB = hard_RB.mul_(hard_R1 + soft_R1)
            elif alpha == 0:
                gradient_RB = soft_RB.mul_(soft_R1)
            else:
                gradient_RB = hard_RB.mul_(hard_R1).addcmul_(soft_RB, soft_R1)
        self.picks.subtract(block, gradient_RB, alpha, (1 - alpha) * self.temperature)
        return gradient_RB


def _within(
    block: slice, rows_K: torch.Tensor, ids_K: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Return which entries are in a block of tokens, and where in its R x B logits."""
    here = ((ids_K >= block.start) & (ids_K < block.stop)).nonzero().squeeze(1)
    return here, (rows_K[here], ids_K[here] - block.start)
