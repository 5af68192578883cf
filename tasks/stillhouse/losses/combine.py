"""The whole loss of an arm."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from stillhouse.contract import StageBug
from stillhouse.losses.features import FeatureLoss, build_features
from stillhouse.losses.fused import LossParts
from stillhouse.losses.head import Head, HeadLoss, TeacherStates
from stillhouse.losses.logit import LogitLoss
from stillhouse.losses.targets import SparseTargets
from stillhouse.models.layers import ModelShape
from stillhouse.models.taps import Captured, TapRequest
from stillhouse.recipe import DistillationConfig

Arm = Literal["kd", "unfiltered", "sft"]
"""``kd`` is the candidate. The others are its controls, which learn from texts and labels alone: ``unfiltered`` from
everything that a teacher wrote, ``sft`` from collected data."""


@dataclass(frozen=True, kw_only=True)
class Classified:
    """What a classifier says about M documents, and what it should say."""

    logits_MC: torch.Tensor
    labels_M: torch.Tensor
    teacher_logits_MC: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What a language model's head is given at N positions, and what it should make of it."""

    hidden_ND: torch.Tensor
    head: Head
    labels_N: torch.Tensor
    teacher: SparseTargets | TeacherStates | None = None
    weights_N: torch.Tensor | None = None
    """What each position counts in the cross-entropy; None: 1."""


@dataclass(frozen=True, kw_only=True)
class Insides:
    """What happened inside student and teacher on the way to their answers."""

    student: Captured
    teacher: Captured
    segments_BT: torch.Tensor
    """See `stillhouse.losses.features.FeatureLoss.forward`."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What a whole optimizer step consists of: all micro-batches, all processes."""

    targets: float
    """Documents with a label, or positions with one; where documents are weighted, the sum of their weights."""
    documents: int


@dataclass(frozen=True, kw_only=True)
class LossValue:
    """A loss and what it consists of."""

    total: torch.Tensor
    """What the optimizer minimises."""
    terms: dict[str, torch.Tensor]
    """Each term before its weight: ``ce``, ``kd`` (with T^2), and the feature terms by name. Detached, unless they
    were asked for separately."""


class DistillationLoss(nn.Module):
    """``alpha * CE + (1 - alpha) * T^2 * D_T(teacher || student) + sum of weight * feature term``.

    ``ce`` and ``kd`` are summed over targets and divided by the number of targets of the whole optimizer step, feature
    terms over documents and divided by their number. Where documents have weights w, ``ce`` is the sum of w times a
    document's mean over its targets, divided by the sum of w. So the gradients of micro-batches add up to the gradient
    of one batch, whatever their sizes. Terms that relate documents to one another see those of a micro-batch only.
    """

    def __init__(self, config: DistillationConfig, features: nn.ModuleList) -> None:
        super().__init__()
        self.config = config
        self.features = features
        """Of `FeatureLoss`; a learned projector is trained with the student."""

    @property
    def needs_logits(self) -> bool:
        """Whether the teacher's distributions count."""
        return self.config.alpha < 1

    @property
    def needs_cached_hidden(self) -> bool:
        """Whether last hidden states from the teacher's cache count."""
        return self.config.caches_hidden

    @property
    def needs_teacher_beside(self) -> bool:
        """Whether the teacher must run beside the student."""
        return self.config.needs_teacher_beside

    @property
    def needs_cache(self) -> bool:
        """Whether anything is read from a teacher's cache."""
        return self.needs_cached_hidden or self.needs_logits

    @property
    def weights(self) -> dict[str, float]:
        """The factor of each term, as configured."""
        kd = {"kd": 1.0 - self.config.alpha} if self.needs_logits else {}
        return {"ce": self.config.alpha, **kd, **{term.name: term.weight for term in self._terms}}

    @property
    def is_cross_entropy(self) -> bool:
        """Whether nothing counts but the labels."""
        return not self.needs_logits and not len(self.features) and self.config.on_policy is None

    @property
    def student_taps(self) -> TapRequest:
        """What must be captured in the student."""
        return _union(term.student_taps for term in self._terms)

    @property
    def teacher_taps(self) -> TapRequest:
        """What must be captured in the teacher."""
        return _union(term.teacher_taps for term in self._terms)

    def forward(
        self,
        answer: Classified | Predicted,
        insides: Insides | None,
        *,
        count: Count,
        weights: Mapping[str, float],
        separate: bool = False,
    ) -> LossValue:
        """Compute the loss of a batch or of one of its micro-batches.

        Args:
            answer: Of the student, with the teacher's as far as it is needed.
            insides: Needed where there are feature terms.
            count: Of the whole optimizer step.
            weights: The factor of each term, maybe balanced.
            separate: Keep the history of each term, to measure its gradient alone; slower.

        Raises:
            StageBug: A needed signal is missing.
            ConfigurationError: Hidden states can't be compared.
        """
        self._check(answer, insides)
        if isinstance(answer, Classified):
            total, terms = self._classified(answer, weights)
        else:
            total, terms = self._predicted(answer, weights, separate=separate)
        total = total / count.targets
        terms = {name: term / count.targets for name, term in terms.items()}
        if insides is not None:
            for feature in self._terms:
                term = feature(insides.student, insides.teacher, insides.segments_BT) / count.documents
                terms[feature.name] = term
                total = total + weights[feature.name] * term
        return LossValue(total=total, terms=terms if separate else {n: term.detach() for n, term in terms.items()})

    def cross_entropy(self, answer: Classified | Predicted) -> torch.Tensor:
        """Sum the cross-entropy over the targets, whatever the loss consists of: a scalar, in nats.

        Raises:
            DataRejected: A label is no real token of the student.
        """
        if isinstance(answer, Classified):
            return self._logit(1.0).terms(answer.logits_MC, answer.labels_M, None)["ce"]
        return self._head(answer, None, 1.0).ce

    def _classified(
        self, answer: Classified, weights: Mapping[str, float]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        teacher_MC = answer.teacher_logits_MC if self.needs_logits else None
        terms = self._logit(self.config.alpha).terms(answer.logits_MC, answer.labels_M, teacher_MC)
        # A term of weight 0 is reported and left out of the sum: its gradient need not be computed.
        return torch.stack([weights[name] * term for name, term in terms.items() if weights[name] > 0]).sum(), terms

    def _predicted(
        self, answer: Predicted, weights: Mapping[str, float], *, separate: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        teacher = answer.teacher if self.needs_logits else None
        if separate:
            shares = {"ce": 1.0} | ({"kd": 0.0} if teacher is not None else {})
            alone = {name: self._head(answer, teacher, share).total for name, share in shares.items()}
            return torch.stack([weights[name] * term for name, term in alone.items()]).sum(), alone
        # The head's loss takes one alpha; with balanced weights, whatever is left over is a common factor.
        scale = weights["ce"] + weights.get("kd", 0.0)
        parts = self._head(answer, teacher, weights["ce"] / scale)
        terms = {"ce": parts.ce} | ({"kd": parts.kd} if parts.kd is not None else {})
        return scale * parts.total, terms

    def _head(self, answer: Predicted, teacher: SparseTargets | TeacherStates | None, alpha: float) -> LossParts:
        head = HeadLoss(logit=self._logit(alpha))
        return head(answer.hidden_ND, answer.head, answer.labels_N, teacher, answer.weights_N)

    def _logit(self, alpha: float) -> LogitLoss:
        config = self.config
        return LogitLoss(
            alpha=alpha, temperature=config.temperature, divergence=config.divergence, mixture=config.mixture
        )

    @property
    def _terms(self) -> list[FeatureLoss]:
        return list(self.features)  # type: ignore[arg-type]

    def _check(self, answer: Classified | Predicted, insides: Insides | None) -> None:
        teacher = answer.teacher_logits_MC if isinstance(answer, Classified) else answer.teacher
        if self.needs_logits and teacher is None:
            raise StageBug("the loss needs the teacher's distributions and got none")
        if len(self.features) and insides is None:
            raise StageBug("the loss needs what happened inside student and teacher and got nothing")


def build_loss(
    config: DistillationConfig, arm: Arm, *, student: ModelShape | None = None, teacher: ModelShape | None = None
) -> DistillationLoss:
    """Return the loss of an arm: ``kd`` as configured, that of a control with the labels alone.

    A teacher is fine-tuned with the ``sft`` loss too.

    Args:
        config: Of the recipe.
        arm: Which one.
        student: Its size; needed by feature terms.
        teacher: Its size; needed by feature terms.

    Raises:
        ConfigurationError: A feature term names a layer that a model lacks.
        StageBug: A size is needed and missing.
    """
    if arm != "kd":
        plain = config.model_copy(update={"alpha": 1.0, "features": (), "on_policy": None, "balance": "off"})
        return DistillationLoss(plain, nn.ModuleList())
    if not config.features:
        return DistillationLoss(config, nn.ModuleList())
    if student is None or teacher is None:
        raise StageBug("feature terms need the sizes of student and teacher")
    return DistillationLoss(config, build_features(config.features, student=student, teacher=teacher, seed=0))


def _union(requests: Iterable[TapRequest]) -> TapRequest:
    found = TapRequest()
    for request in requests:
        found = found | request
    return found
