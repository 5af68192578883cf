"""Hidden states, token by token."""

import torch
from torch import nn
from torch.nn import functional

from stillhouse.losses.features.base import FeatureLoss, full, sum_of_document_means
from stillhouse.models.taps import Captured, TapRequest
from stillhouse.recipe.distillation import HiddenTerm


class HiddenLoss(FeatureLoss):
    """``1 - cos`` (Sanh et al. 2019, section 3), or the mean squared error (TinyBERT, Jiao et al. 2020, equation 8).

    The distance is averaged over the tokens of each document: a long one counts as much as a short one. Where widths
    differ, one linear map without bias, learned with the student and shared by all pairs of layers, takes the
    student's states to the teacher's width. It is no part of the student that is kept.
    """

    def __init__(
        self, term: HiddenTerm, pairs: tuple[tuple[int, int], ...], *, width: int, teacher_width: int, seed: int
    ) -> None:
        """Build the loss; the caller's random state is left as it was.

        Args:
            term: Of the recipe.
            pairs: Student and teacher layers.
            width: Of the student's hidden states.
            teacher_width: Of the teacher's.
            seed: Of the map's first weights.
        """
        super().__init__(name="hidden", weight=term.weight, pairs=pairs)
        self.distance = term.distance
        self.projector_ED: nn.Parameter | None = None
        if width != teacher_width:
            # Not an nn.Linear, which would draw its first weights from the caller's random state.
            self.projector_ED = nn.Parameter(torch.empty(teacher_width, width))
            nn.init.xavier_uniform_(self.projector_ED, generator=torch.Generator().manual_seed(seed))

    def taps(self, layers: frozenset[int]) -> TapRequest:
        """Return what the loss needs of these layers."""
        return TapRequest(hidden=layers)

    def compare(
        self, student: Captured, teacher: Captured, pair: tuple[int, int], segments_BT: torch.Tensor
    ) -> torch.Tensor:
        """Sum over the documents for one pair of layers: a scalar."""
        # What a cache holds at padding may be anything, NaN too, so it must not even enter the graph.
        real_BT = segments_BT >= 0
        hidden_ND, teacher_NE = full(student.hidden[pair[0]])[real_BT], full(teacher.hidden[pair[1]])[real_BT]
        if self.projector_ED is not None:
            hidden_ND = functional.linear(hidden_ND, self.projector_ED)
        if self.distance == "cosine":
            distance_N = 1 - functional.cosine_similarity(hidden_ND, teacher_NE, dim=-1)
        else:
            distance_N = (hidden_ND - teacher_NE).square().mean(dim=-1)
        return sum_of_document_means(distance_N, segments_BT[real_BT])
