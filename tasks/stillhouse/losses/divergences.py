"""How far apart two distributions over the same vocabulary are."""

import math

import torch

from stillhouse.recipe import Divergence

_ABSENT = -1e4
"""Logarithm of a probability that is 0 in any floating type, and that can be added and subtracted."""


def divergence_sum(
    log_teacher_NV: torch.Tensor, log_student_NV: torch.Tensor, *, divergence: Divergence, mixture: float
) -> torch.Tensor:
    """Sum the divergence of N pairs of distributions, p of the teacher and q of the student.

    ========== ====================================================================================
    forward-kl KL(p, q) (Hinton et al. 2015)
    reverse-kl KL(q, p) (Gu et al. 2024)
    jsd        beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q (Agarwal et al. 2024)
    skew-kl    KL(p, lambda p + (1 - lambda) q) (Ko et al. 2024)
    tvd        half the L1 distance of p and q
    ========== ====================================================================================

    A token that both rule out (-inf) adds nothing, to the value or to the gradient. One that only the second argument
    of a KL rules out makes it infinite, as it should.

    Args:
        log_teacher_NV: Log-probabilities.
        log_student_NV: Log-probabilities.
        divergence: Which of the above.
        mixture: beta or lambda; unused by the others.

    Returns:
        A scalar, in nats (``tvd``: from 0 to N).
    """
    match divergence:
        case "forward-kl":
            return _kl(log_teacher_NV, log_student_NV)
        case "reverse-kl":
            return _kl(log_student_NV, log_teacher_NV)
        case "jsd":
            log_mixed_NV = _log_mixture(log_teacher_NV, log_student_NV, mixture)
            return mixture * _kl(log_teacher_NV, log_mixed_NV) + (1 - mixture) * _kl(log_student_NV, log_mixed_NV)
        case "skew-kl":
            return _kl(log_teacher_NV, _log_mixture(log_teacher_NV, log_student_NV, mixture))
        case "tvd":
            return 0.5 * (log_teacher_NV.exp() - log_student_NV.exp()).abs().sum()


def _kl(log_p_NV: torch.Tensor, log_q_NV: torch.Tensor) -> torch.Tensor:
    p_NV = log_p_NV.exp()
    # 0 log 0 is 0. The unused side of `where` may be NaN: neither its value nor its gradient goes on from here.
    return (p_NV * torch.where(p_NV > 0, log_p_NV - log_q_NV, 0.0)).sum()


def _log_mixture(log_p_NV: torch.Tensor, log_q_NV: torch.Tensor, share: float) -> torch.Tensor:
    # The gradient of logaddexp(-inf, -inf) is NaN, even times 0.
    absent_NV = (log_p_NV == -math.inf) & (log_q_NV == -math.inf)
    return torch.logaddexp(
        log_p_NV.masked_fill(absent_NV, _ABSENT) + math.log(share),
        log_q_NV.masked_fill(absent_NV, _ABSENT) + math.log1p(-share),
    )
