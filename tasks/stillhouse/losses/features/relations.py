"""Relations among queries, keys and values: what attention is made of, without its maps."""

import math

import torch

from stillhouse.contract import ConfigurationError
from stillhouse.losses.features.base import FeatureLoss, full, same_document, sum_of_document_means
from stillhouse.models.taps import Captured, TapRequest
from stillhouse.recipe.distillation import QkvRelationTerm

_PARTS = {"query": "queries", "key": "keys", "value": "values"}


class QkvRelationLoss(FeatureLoss):
    """MiniLMv2 (Wang et al. 2021, equations 5 to 8): ``KL(teacher || student)`` of ``softmax(A A^T / sqrt(d))``.

    A are a layer's queries, keys or values, cut into relation heads d wide, the same number for both models whatever
    their own heads are. Averaged over relation heads and over the query tokens of each document, summed over the kinds
    of relations. A token is related to every token of its document, in a decoder too: the relations compare states and
    pass none on. Queries and keys are taken before rotary embeddings.
    """

    def __init__(self, term: QkvRelationTerm, pairs: tuple[tuple[int, int], ...]) -> None:
        """Build the loss of a recipe's term for pairs of student and teacher layers."""
        super().__init__(name="qkv-relation", weight=term.weight, pairs=pairs)
        self.relations = term.relations
        self.heads = term.heads

    def taps(self, layers: frozenset[int]) -> TapRequest:
        """Return what the loss needs of these layers."""
        return TapRequest(qkv=layers)

    def compare(
        self, student: Captured, teacher: Captured, pair: tuple[int, int], segments_BT: torch.Tensor
    ) -> torch.Tensor:
        """Sum over the documents for one pair of layers: a scalar."""
        same_B1TT = same_document(segments_BT)[:, None]
        terms = []
        for relation in self.relations:
            part = _PARTS[relation]
            log_q_BHTT = self._log_relation(getattr(student, part)[pair[0]], same_B1TT, f"the student's {part}")
            log_p_BHTT = self._log_relation(getattr(teacher, part)[pair[1]], same_B1TT, f"the teacher's {part}")
            divergence_BHT = (log_p_BHTT.exp() * (log_p_BHTT - log_q_BHTT)).sum(dim=-1)
            terms.append(sum_of_document_means(divergence_BHT.mean(dim=1), segments_BT))
        return torch.stack(terms).sum()

    def _log_relation(self, states_BTD: torch.Tensor, same_B1TT: torch.Tensor, whose: str) -> torch.Tensor:
        width = states_BTD.shape[-1]
        if width % self.heads:
            raise ConfigurationError(
                f"{whose} are {width} wide, which {self.heads} relation heads don't divide; "
                "change heads of the qkv-relation term"
            )
        heads_BHTd = full(states_BTD).reshape(*states_BTD.shape[:-1], self.heads, -1).transpose(1, 2)
        scores_BHTT = heads_BHTd @ heads_BHTd.mT / math.sqrt(width // self.heads)
        # The lowest number rather than -inf: where both models have -inf, their difference is NaN.
        return scores_BHTT.masked_fill(~same_B1TT, torch.finfo(scores_BHTT.dtype).min).log_softmax(dim=-1)
