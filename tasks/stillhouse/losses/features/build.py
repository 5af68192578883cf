"""From a recipe's feature terms to losses."""

from collections.abc import Sequence

from torch import nn

from stillhouse.contract import ConfigurationError
from stillhouse.losses.features.attention import AttentionLoss
from stillhouse.losses.features.base import FeatureLoss
from stillhouse.losses.features.hidden import HiddenLoss
from stillhouse.losses.features.relations import QkvRelationLoss
from stillhouse.losses.features.samples import CkaLoss, RelationalLoss, SimilarityLoss
from stillhouse.models.layers import ModelShape
from stillhouse.recipe.distillation import (
    AttentionTerm,
    CkaTerm,
    FeatureTerm,
    HiddenTerm,
    LayerPairs,
    QkvRelationTerm,
    RelationalTerm,
)


def build_features(
    features: Sequence[FeatureTerm], *, student: ModelShape, teacher: ModelShape, seed: int
) -> nn.ModuleList:
    """Return a `FeatureLoss` for each term, in order; the caller's random state is left as it was.

    Args:
        features: Of the recipe.
        student: Its depth and width.
        teacher: Its depth and width.
        seed: Of learned projectors, to be trained with the student.

    Raises:
        ConfigurationError: A term names a layer that a model lacks.
    """
    return nn.ModuleList(_build(term, student, teacher, seed) for term in features)


def layer_pairs(layers: LayerPairs, *, student: int, teacher: int, lowest: int = 1) -> tuple[tuple[int, int], ...]:
    """Return the student and teacher layers to compare, each counted from 1.

    ``all`` pairs student layer i of n with teacher layer ``round(i * m / n)`` of m, at least 1.

    Args:
        layers: Of the recipe.
        student: Its number of layers.
        teacher: Its number of layers.
        lowest: The first layer that may be named: 0 where the embeddings' output can be compared.

    Raises:
        ConfigurationError: A layer is named that a model lacks.
    """
    if layers == "last":
        return ((student, teacher),)
    if layers == "all":
        return tuple((i, max(1, round(i * teacher / student))) for i in range(1, student + 1))
    for pair in layers:
        for layer, depth, whose in zip(pair, (student, teacher), ("student", "teacher"), strict=True):
            if not lowest <= layer <= depth:
                raise ConfigurationError(
                    f"distillation.features names {whose} layer {layer}; it has layers {lowest} to {depth}"
                )
    return layers


def _build(term: FeatureTerm, student: ModelShape, teacher: ModelShape, seed: int) -> FeatureLoss:
    lowest = 1 if isinstance(term, AttentionTerm | QkvRelationTerm) else 0
    pairs = layer_pairs(term.layers, student=student.layers, teacher=teacher.layers, lowest=lowest)
    if isinstance(term, HiddenTerm):
        return HiddenLoss(term, pairs, width=student.width, teacher_width=teacher.width, seed=seed)
    if isinstance(term, AttentionTerm):
        return AttentionLoss(term, pairs)
    if isinstance(term, QkvRelationTerm):
        return QkvRelationLoss(term, pairs)
    if isinstance(term, RelationalTerm):
        return RelationalLoss(term, pairs)
    if isinstance(term, CkaTerm):
        return CkaLoss(term, pairs)
    return SimilarityLoss(term, pairs)
