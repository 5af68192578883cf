"""Attention maps: which tokens a token looks at."""

import torch

from stillhouse.losses.features.base import FeatureLoss, full, same_document, sum_of_document_means
from stillhouse.models.taps import Captured, TapRequest
from stillhouse.recipe.distillation import AttentionTerm


class AttentionLoss(FeatureLoss):
    """``KL(teacher || student)`` of a query's weights (MiniLM, Wang et al. 2020, section 3.1), or their squared error.

    Averaged over heads and over the query tokens of each document; the squared error is summed over keys, so that long
    documents, whose weights are small, count as much. Maps are averaged over heads first where their numbers differ.

    Weights are compared as distributions over the keys of the same document to which both models give some weight: a
    key hidden from one of them by its mask, or by the dropout of training, tells nothing and would make the divergence
    infinite.
    """

    def __init__(self, term: AttentionTerm, pairs: tuple[tuple[int, int], ...]) -> None:
        """Build the loss of a recipe's term for pairs of student and teacher layers."""
        super().__init__(name="attention", weight=term.weight, pairs=pairs)
        self.distance = term.distance

    def taps(self, layers: frozenset[int]) -> TapRequest:
        """Return what the loss needs of these layers."""
        return TapRequest(attention=layers)

    def compare(
        self, student: Captured, teacher: Captured, pair: tuple[int, int], segments_BT: torch.Tensor
    ) -> torch.Tensor:
        """Sum over the documents for one pair of layers: a scalar."""
        weights_BHTT, teacher_BHTT = full(student.attention[pair[0]]), full(teacher.attention[pair[1]])
        if weights_BHTT.shape[1] != teacher_BHTT.shape[1]:
            weights_BHTT, teacher_BHTT = (maps.mean(dim=1, keepdim=True) for maps in (weights_BHTT, teacher_BHTT))
        counts_BHTT = same_document(segments_BT)[:, None] & (weights_BHTT > 0) & (teacher_BHTT > 0)
        q_BHTT, p_BHTT = _renormalised(weights_BHTT, counts_BHTT), _renormalised(teacher_BHTT, counts_BHTT)
        if self.distance == "kl":
            difference_BHTT = torch.where(counts_BHTT, p_BHTT, 1).log() - torch.where(counts_BHTT, q_BHTT, 1).log()
            distance_BHT = (p_BHTT * difference_BHTT).sum(dim=-1)
        else:
            distance_BHT = (q_BHTT - p_BHTT).square().sum(dim=-1)
        return sum_of_document_means(distance_BHT.mean(dim=1), segments_BT)


def _renormalised(weights_BHTT: torch.Tensor, counts_BHTT: torch.Tensor) -> torch.Tensor:
    weights_BHTT = torch.where(counts_BHTT, weights_BHTT, 0)
    mass_BHT1 = weights_BHTT.sum(dim=-1, keepdim=True)
    return weights_BHTT / torch.where(mass_BHT1 > 0, mass_BHT1, 1)
