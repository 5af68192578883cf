"""Linear layers and embeddings that are products of two thin matrices, and models that are made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

RANKS = "stillhouse_ranks"
"""Key of a model's config: the rank of each factored module, by its name."""


class FactoredLinear(nn.Module):
    """``x @ (up_MR @ down_RD).T + bias_M``, without ever forming the product."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the layer's output."""
        output: torch.Tensor = self.up(self.down(states))
        return output


class FactoredEmbedding(nn.Module):
    """Rows of ``codes_VR @ up_DR.T``."""

    def __init__(self, num_embeddings: int, embedding_dim: int, rank: int, *, padding_idx: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.rank = num_embeddings, embedding_dim, rank
        self.codes = nn.Embedding(num_embeddings, rank, padding_idx=padding_idx)
        self.up = nn.Linear(rank, embedding_dim, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors of token ids."""
        vectors: torch.Tensor = self.up(self.codes(ids))
        return vectors


def install_factors(model: PreTrainedModel, ranks: Mapping[str, int]) -> None:
    """Put factors of unset weights in the place of modules, with their device, precision and mode; note it in the
    config.

    Args:
        model: Changed in place.
        ranks: Of each module, a linear layer or an embedding, by its name.

    Raises:
        ValueError: There is no such module, it is of another kind, or the rank is none.
    """
    modules = dict(model.named_modules())
    for name, rank in ranks.items():
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"module {name} has rank {rank}")
        whole = modules.get(name)
        factored: FactoredLinear | FactoredEmbedding
        with torch.random.fork_rng(devices=[]):
            if isinstance(whole, nn.Linear):
                bias = whole.bias is not None
                factored = FactoredLinear(whole.in_features, whole.out_features, rank, bias=bias)
            elif isinstance(whole, nn.Embedding):
                size, width = whole.num_embeddings, whole.embedding_dim
                factored = FactoredEmbedding(size, width, rank, padding_idx=whole.padding_idx)
            else:
                raise ValueError(f"there is no linear layer or embedding {name}")
        model.set_submodule(name, factored.to(whole.weight.device, whole.weight.dtype).train(whole.training))
    setattr(model.config, RANKS, dict(sorted(ranks.items())))


def read_factored(loader: Any, folder: Path, *, config: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Do what ``loader.from_pretrained`` does, for a folder whose config names ranks.

    Transformers builds a model before it reads its weights; a passing subclass puts the factors in between.

    Args:
        loader: The ``AutoModel`` of the model's task.
        folder: Of the model.
        config: Of the model, with the ranks.
        **options: Of ``from_pretrained``.

    Returns:
        The model, and transformers' report on its weights.

    Raises:
        ValueError: The folder holds a model of another task, or the ranks don't fit it.
    """
    ranks = getattr(config, RANKS)
    if not isinstance(ranks, dict):
        raise ValueError(f"{RANKS} in its config is no table")
    architecture = loader._model_mapping.get(type(config), None)
    if architecture is None or architecture.__name__ not in (config.architectures or ()):
        raise ValueError(f"it has factors and can only be read as what it was written: {config.architectures}")

    def build(self: Any, *arguments: Any, **keywords: Any) -> None:
        architecture.__init__(self, *arguments, **keywords)
        install_factors(self, ranks)

    passing: Any = type(architecture.__name__, (architecture,), {"__init__": build})
    model, info = passing.from_pretrained(folder, config=config, output_loading_info=True, **options)
    model.__class__ = architecture
    return model, info
