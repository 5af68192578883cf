"""The part of the loss that compares class distributions."""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class LogitLoss:
    """``alpha * CE(student, labels) + (1 - alpha) * T^2 * KL_T(teacher || student)`` (Hinton et al. 2015, section 2).

    With z the student's logits, p = softmax(z), q_s = softmax(z / T) and q_t the teacher's distribution at T, the
    gradient of one sequence is ``alpha * (p - onehot) + (1 - alpha) * T * (q_s - q_t)``. As q_s - q_t shrinks like
    1 / T, the factor T^2 keeps the size of the soft part about level whatever T is.
    """

    alpha: float
    """Weight of the cross-entropy, from 0 to 1."""
    temperature: float
    """T > 0, divides both models' logits."""

    def terms(
        self, logits_BC: torch.Tensor, labels_B: torch.Tensor, teacher_logits_BC: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Sum each term over the B sequences, before its weight.

        Args:
            logits_BC: The student's.
            labels_B: Class indices, int64.
            teacher_logits_BC: None leaves the soft term out.

        Returns:
            ``ce``, and ``kd`` with its factor T^2: scalars, in nats.
        """
        terms = {"ce": functional.cross_entropy(logits_BC, labels_B, reduction="sum")}
        if teacher_logits_BC is not None:
            divergence = functional.kl_div(
                functional.log_softmax(logits_BC / self.temperature, dim=-1),
                functional.log_softmax(teacher_logits_BC / self.temperature, dim=-1),
                reduction="sum",
                log_target=True,
            )
            terms["kd"] = self.temperature**2 * divergence
        return terms

    @property
    def weights(self) -> dict[str, float]:
        """The factor of each term."""
        return {"ce": self.alpha, "kd": 1.0 - self.alpha}
