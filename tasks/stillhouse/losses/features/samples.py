"""Relations among the documents of a (micro-)batch, each as the mean of its tokens' hidden states.

Each loss is a mean over the micro-batch times its M documents. A single document has nothing to be compared with: 0.
"""

from abc import abstractmethod

import torch
from torch.nn import functional

from stillhouse.losses.features.base import FeatureLoss, document_vectors, full
from stillhouse.models.taps import Captured, TapRequest
from stillhouse.recipe.distillation import CkaTerm, RelationalTerm, SimilarityTerm


class SampleLoss(FeatureLoss):
    """Compares the M document vectors of a (micro-)batch."""

    def taps(self, layers: frozenset[int]) -> TapRequest:
        """Return what the loss needs of these layers."""
        return TapRequest(hidden=layers)

    def compare(
        self, student: Captured, teacher: Captured, pair: tuple[int, int], segments_BT: torch.Tensor
    ) -> torch.Tensor:
        """Return the distance times the number of documents, for one pair of layers: a scalar."""
        vectors_MD = document_vectors(full(student.hidden[pair[0]]), segments_BT)
        teacher_ME = document_vectors(full(teacher.hidden[pair[1]]), segments_BT)
        return len(vectors_MD) * self.distance(vectors_MD, teacher_ME)

    @abstractmethod
    def distance(self, vectors_MD: torch.Tensor, teacher_ME: torch.Tensor) -> torch.Tensor:
        """Return how differently student and teacher arrange the documents: a scalar."""


class RelationalLoss(SampleLoss):
    """RKD: distances and angles among documents (Park et al. 2019, sections 3.2.1 and 3.2.2).

    Huber loss of the distances of pairs, each model's divided by their mean, and of the cosines of the angles of
    triples; averaged over pairs and triples of distinct documents. Needs M^3 numbers.
    """

    def __init__(self, term: RelationalTerm, pairs: tuple[tuple[int, int], ...]) -> None:
        """Build the loss of a recipe's term for pairs of student and teacher layers."""
        super().__init__(name="rkd", weight=term.weight, pairs=pairs)
        self.angle_share = term.angle_share

    def distance(self, vectors_MD: torch.Tensor, teacher_ME: torch.Tensor) -> torch.Tensor:
        """Return how differently student and teacher arrange the documents: a scalar."""
        distinct_MM = ~torch.eye(len(vectors_MD), dtype=torch.bool, device=vectors_MD.device)
        distances_MM, angles_MMM = _distances_and_angles(vectors_MD, distinct_MM)
        teacher_MM, teacher_MMM = _distances_and_angles(teacher_ME, distinct_MM)
        triples_MMM = distinct_MM[:, :, None] & distinct_MM[:, None, :] & distinct_MM[None, :, :]
        distance = _mean_huber(distances_MM, teacher_MM, distinct_MM)
        angle = _mean_huber(angles_MMM, teacher_MMM, triples_MMM)
        return (1 - self.angle_share) * distance + self.angle_share * angle


class CkaLoss(SampleLoss):
    """One minus linear centred kernel alignment (Kornblith et al. 2019, equation 4), from 0 to 1.

    Blind to rotation and scale of the vectors. Needs three documents: two are always aligned.
    """

    def __init__(self, term: CkaTerm, pairs: tuple[tuple[int, int], ...]) -> None:
        """Build the loss of a recipe's term for pairs of student and teacher layers."""
        super().__init__(name="cka", weight=term.weight, pairs=pairs)

    def distance(self, vectors_MD: torch.Tensor, teacher_ME: torch.Tensor) -> torch.Tensor:
        """Return how differently student and teacher arrange the documents: a scalar."""
        centred_MD, centred_teacher_ME = (vectors - vectors.mean(dim=0) for vectors in (vectors_MD, teacher_ME))
        # With Gram matrices, M by M, instead of the equation's D by E: the same number, and M is small.
        gram_MM, teacher_MM = centred_MD @ centred_MD.T, centred_teacher_ME @ centred_teacher_ME.T
        scale = gram_MM.norm() * teacher_MM.norm()
        alignment = (gram_MM * teacher_MM).sum() / torch.where(scale > 0, scale, 1)
        return torch.where(scale > 0, 1 - alignment, 0)


class SimilarityLoss(SampleLoss):
    """Similarity-preserving distillation (Tung & Mori 2019, equations 1 to 4).

    The mean squared difference of the two Gram matrices, their rows scaled to length 1.
    """

    def __init__(self, term: SimilarityTerm, pairs: tuple[tuple[int, int], ...]) -> None:
        """Build the loss of a recipe's term for pairs of student and teacher layers."""
        super().__init__(name="similarity", weight=term.weight, pairs=pairs)

    def distance(self, vectors_MD: torch.Tensor, teacher_ME: torch.Tensor) -> torch.Tensor:
        """Return how differently student and teacher arrange the documents: a scalar."""
        gram_MM = functional.normalize(vectors_MD @ vectors_MD.T, dim=1)
        teacher_MM = functional.normalize(teacher_ME @ teacher_ME.T, dim=1)
        return (gram_MM - teacher_MM).square().mean()


def _distances_and_angles(vectors_MD: torch.Tensor, distinct_MM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances over their mean (M, M), and at [j, i, k] the cosine of the angle at document j between i and k.

    Documents at the same place have distance 0 and angles of cosine 0, without gradient: a root has none at 0.
    """
    difference_MMD = vectors_MD[None, :, :] - vectors_MD[:, None, :]
    square_MM = difference_MMD.square().sum(dim=-1)
    apart_MM = square_MM > 0
    length_MM = torch.where(apart_MM, square_MM, 1).sqrt()
    distance_MM = torch.where(apart_MM, length_MM, 0)
    mean = distance_MM.sum() / distinct_MM.sum().clamp(min=1)
    direction_MMD = difference_MMD / length_MM[..., None]
    return distance_MM / torch.where(mean > 0, mean, 1), direction_MMD @ direction_MMD.mT


def _mean_huber(values: torch.Tensor, teacher: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return functional.smooth_l1_loss(values, teacher, reduction="none")[counts].sum() / counts.sum().clamp(min=1)
