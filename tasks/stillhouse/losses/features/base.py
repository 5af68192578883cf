"""What all feature losses share."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from stillhouse.models.taps import Captured, TapRequest


class FeatureLoss(nn.Module, ABC):
    """Compares states of pairs of layers of student and teacher."""

    student_taps: TapRequest
    """What must be captured in the student."""
    teacher_taps: TapRequest
    """What must be captured in the teacher."""

    def __init__(self, *, name: str, weight: float, pairs: tuple[tuple[int, int], ...]) -> None:
        """Describe the term.

        Args:
            name: Of the term in logs and curves.
            weight: Factor of the term in the whole loss; `forward` leaves it out.
            pairs: Student and teacher layers, each counted from 1; 0 is the embeddings' output.
        """
        super().__init__()
        self.name = name
        self.weight = weight
        self.pairs = pairs
        self.student_taps = self.taps(frozenset(layer for layer, _ in pairs))
        self.teacher_taps = self.taps(frozenset(layer for _, layer in pairs))

    def forward(self, student: Captured, teacher: Captured, segments_BT: torch.Tensor) -> torch.Tensor:
        """Sum over the documents, averaged over the pairs of layers.

        Computed in float32, or in float64 where the states are, with autocast off. The teacher gets no gradient.

        Args:
            student: Of B rows of T tokens, padded.
            teacher: Of the same rows.
            segments_BT: int64, the number of each token's document from 0 to M - 1, or -1 at padding. A document lies
                within a row, a row may hold several.

        Returns:
            A scalar, before its weight.

        Raises:
            StageBug: Something that the loss needs was not captured.
            ConfigurationError: The states can't be compared.
        """
        student.check(self.student_taps)
        teacher.check(self.teacher_taps)
        teacher = teacher.detached()
        with torch.autocast(device_type=segments_BT.device.type, enabled=False):
            terms = [self.compare(student, teacher, pair, segments_BT) for pair in self.pairs]
            return torch.stack(terms).mean()

    @abstractmethod
    def taps(self, layers: frozenset[int]) -> TapRequest:
        """Return what the loss needs of these layers."""

    @abstractmethod
    def compare(
        self, student: Captured, teacher: Captured, pair: tuple[int, int], segments_BT: torch.Tensor
    ) -> torch.Tensor:
        """Sum over the documents for one pair of layers: a scalar."""


def full(states: torch.Tensor) -> torch.Tensor:
    """Return states in float32, or in float64 where they are."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def sum_of_document_means(values: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Average a value over the tokens of each document and add up the documents: a scalar.

    Args:
        values: One for each token, in any shape.
        segments: In the same shape, the number of each token's document, or -1 at padding, whose value is ignored.
    """
    real = segments >= 0
    segments_N = segments[real]
    tokens_M = torch.bincount(segments_N)
    return (values[real] / tokens_M[segments_N]).sum()


def document_vectors(hidden_BTD: torch.Tensor, segments_BT: torch.Tensor) -> torch.Tensor:
    """Average hidden states over the tokens of each document: (M, D)."""
    real_BT = segments_BT >= 0
    one_hot_NM = nn.functional.one_hot(segments_BT[real_BT]).to(hidden_BTD.dtype)
    # A product rather than an indexed sum: the latter adds in no fixed order on a GPU.
    return (one_hot_NM / one_hot_NM.sum(dim=0)).T @ hidden_BTD[real_BT]


def same_document(segments_BT: torch.Tensor) -> torch.Tensor:
    """Return which pairs of tokens lie in the same document: (B, T, T), bool."""
    return (segments_BT[:, :, None] == segments_BT[:, None, :]) & (segments_BT >= 0)[:, :, None]
