"""Divergence from a teacher of whom only some probabilities are known."""

import math

import torch
from torch.nn import functional

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.losses.targets import SparseTargets
from stillhouse.recipe import Divergence


def check_positions(targets: SparseTargets, N: int) -> None:
    """Refuse targets that are not of N positions: they would be silently those of other tokens.

    Raises:
        StageBug: They are of more or fewer.
    """
    if targets.num_positions != N:
        raise StageBug(f"the teacher has targets of {targets.num_positions} positions, the student has {N}")


def entry_positions(targets: SparseTargets) -> torch.Tensor:
    """Return the position that each of the K entries belongs to, int64."""
    positions_N = torch.arange(targets.num_positions, device=targets.offsets_S.device)
    return positions_N.repeat_interleave(targets.offsets_S.diff(), output_size=len(targets.ids_K))


def select_positions(targets: SparseTargets, positions_P: torch.Tensor) -> SparseTargets:
    """Return the targets of P of the positions, in that order; int64 indices."""
    lengths_P = targets.offsets_S.diff()[positions_P]
    offsets_S = functional.pad(lengths_P.cumsum(0), (1, 0))
    shift_P = targets.offsets_S[positions_P] - offsets_S[:-1]
    shift_K = shift_P.repeat_interleave(lengths_P)
    entries_K = torch.arange(len(shift_K), device=shift_K.device) + shift_K
    return SparseTargets(
        offsets_S=offsets_S, ids_K=targets.ids_K[entries_K], probabilities_K=targets.probabilities_K[entries_K]
    )


def slice_positions(targets: SparseTargets, start: int, stop: int) -> SparseTargets:
    """Return the targets of the positions from ``start`` to ``stop``, without copying their entries."""
    offsets_S = targets.offsets_S[start : stop + 1]
    entries = slice(int(offsets_S[0]), int(offsets_S[-1]))
    return SparseTargets(
        offsets_S=offsets_S - offsets_S[0],
        ids_K=targets.ids_K[entries],
        probabilities_K=targets.probabilities_K[entries],
    )


def sparse_divergence_sum(
    logits_NV: torch.Tensor, targets: SparseTargets, *, temperature: float, divergence: Divergence, mixture: float
) -> torch.Tensor:
    """Sum the divergence at temperature T of N positions; a token that a target does not name has p = 0 there.

    With q the student's softmax at T and t a target of mass m, ``forward-kl`` is ``sum_k t_k (log t_k - log q_k)``, and
    its gradient with respect to the logits ``(m q - t) / T``: a cut tail pulls nowhere, instead of towards 0. What the
    other divergences owe to tokens without a target depends on their total probability alone, so no sum runs over them.
    This is the reference that the fused loss is tested against; it holds N x V elements.

    Args:
        logits_NV: The student's.
        targets: Of N positions.
        temperature: T.
        divergence: As in `divergence_sum`, apart from ``reverse-kl``.
        mixture: As in `divergence_sum`.

    Returns:
        A scalar, in nats, without the factor T^2.

    Raises:
        ConfigurationError: ``reverse-kl`` was asked for, which is infinite where p is 0.
    """
    if divergence == "reverse-kl":
        raise ConfigurationError("reverse-kl needs the teacher's whole distribution; use jsd, or a live teacher")
    positions_K = entry_positions(targets)
    log_q_K = functional.log_softmax(logits_NV / temperature, dim=-1)[positions_K, targets.ids_K]
    p_K = targets.probabilities_K.to(log_q_K.dtype)
    log_p_K = p_K.log()
    match divergence:
        case "forward-kl":
            return (p_K * (log_p_K - log_q_K)).sum()
        case "tvd":
            q_K = log_q_K.exp()
            return 0.5 * ((p_K - q_K).abs().sum() + targets.num_positions - q_K.sum())
        case "skew-kl":
            return (p_K * (log_p_K - _log_mixture(log_p_K, log_q_K, mixture))).sum()
        case "jsd":
            log_mixed_K, q_K = _log_mixture(log_p_K, log_q_K, mixture), log_q_K.exp()
            teacher = (p_K * (log_p_K - log_mixed_K)).sum()
            # Where p is 0, q (log q - log m) is -q log(1 - beta).
            unnamed = (targets.num_positions - q_K.sum()) * -math.log1p(-mixture)
            student = torch.where(q_K > 0, q_K * (log_q_K - log_mixed_K), 0.0).sum() + unnamed
            return mixture * teacher + (1 - mixture) * student


def _log_mixture(log_p_K: torch.Tensor, log_q_K: torch.Tensor, share: float) -> torch.Tensor:
    return torch.logaddexp(log_p_K + math.log(share), log_q_K + math.log1p(-share))
