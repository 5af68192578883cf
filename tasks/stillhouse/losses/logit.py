"""The part of the loss that compares distributions over classes or tokens."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from stillhouse.losses.divergences import divergence_sum
from stillhouse.losses.sparse import check_positions, select_positions, sparse_divergence_sum
from stillhouse.losses.targets import SparseTargets
from stillhouse.models.documents import IGNORED
from stillhouse.recipe import Divergence


@dataclass(frozen=True, kw_only=True)
class LogitLoss:
    """``alpha * CE(student, labels) + (1 - alpha) * T^2 * D_T(teacher || student)`` (Hinton et al. 2015, section 2).

    With z the student's logits, p = softmax(z), q = softmax(z / T), t the teacher's distribution at T and m its mass,
    the gradient of a row with forward KL is ``alpha * (p - onehot) + (1 - alpha) * T * (m q - t)``. As q - t shrinks
    like 1 / T, the factor T^2 keeps the size of the soft part about level whatever T is.

    A row labelled `IGNORED` carries neither term.
    """

    alpha: float
    """Weight of the cross-entropy, from 0 to 1."""
    temperature: float
    """T > 0, divides both models' logits."""
    divergence: Divergence = "forward-kl"
    """D, see `divergence_sum`."""
    mixture: float = 0.5
    """beta of ``jsd``, lambda of ``skew-kl``."""

    def terms(
        self,
        logits_NV: torch.Tensor,
        labels_N: torch.Tensor,
        teacher: torch.Tensor | SparseTargets | None,
    ) -> dict[str, torch.Tensor]:
        """Sum each term over the N rows, before its weight.

        Args:
            logits_NV: The student's.
            labels_N: Class or token indices, int64, or `IGNORED`.
            teacher: Its logits_NV, or what is known of its distributions; None leaves the soft term out.

        Returns:
            ``ce``, and ``kd`` with its factor T^2: scalars, in nats.

        Raises:
            ConfigurationError: The divergence can't be computed from sparse targets.
            StageBug: There are targets of more or fewer rows.
        """
        terms = {"ce": functional.cross_entropy(logits_NV, labels_N, reduction="sum", ignore_index=IGNORED)}
        if teacher is None:
            return terms
        if isinstance(teacher, SparseTargets):
            check_positions(teacher, len(labels_N))
        rows_P = (labels_N != IGNORED).nonzero().squeeze(1)
        if len(rows_P) < len(labels_N):
            logits_NV = logits_NV[rows_P]
            teacher = select_positions(teacher, rows_P) if isinstance(teacher, SparseTargets) else teacher[rows_P]
        if isinstance(teacher, SparseTargets):
            divergence = sparse_divergence_sum(
                logits_NV,
                teacher,
                temperature=self.temperature,
                divergence=self.divergence,
                mixture=self.mixture,
            )
        else:
            divergence = divergence_sum(
                functional.log_softmax(teacher / self.temperature, dim=-1),
                functional.log_softmax(logits_NV / self.temperature, dim=-1),
                divergence=self.divergence,
                mixture=self.mixture,
            )
        terms["kd"] = self.temperature**2 * divergence
        return terms

    @property
    def weights(self) -> dict[str, float]:
        """The factor of each term."""
        return {"ce": self.alpha, "kd": 1.0 - self.alpha}
