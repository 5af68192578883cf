"""What the student imitates besides the teacher's distributions: its inner states.

Every loss is the sum over the M documents of a (micro-)batch, so that dividing by the documents of an optimizer step
gives a mean, whatever its micro-batches. Those that compare documents with each other (``rkd``, ``cka``,
``similarity``) see the documents of one micro-batch alone: unlike the others they depend on how a batch is cut.
"""

from stillhouse.losses.features.attention import AttentionLoss
from stillhouse.losses.features.base import FeatureLoss
from stillhouse.losses.features.build import build_features, layer_pairs
from stillhouse.losses.features.hidden import HiddenLoss
from stillhouse.losses.features.relations import QkvRelationLoss
from stillhouse.losses.features.samples import CkaLoss, RelationalLoss, SimilarityLoss

__all__ = [
    "AttentionLoss",
    "CkaLoss",
    "FeatureLoss",
    "HiddenLoss",
    "QkvRelationLoss",
    "RelationalLoss",
    "SimilarityLoss",
    "build_features",
    "layer_pairs",
]
