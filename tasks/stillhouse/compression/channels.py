"""Which axes of a model's weights belong to which of its widths, and the same model with fewer channels."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.contract import ConfigurationError
from stillhouse.models import layers_prefix, rebuild

Width = Literal["hidden", "queries", "keys", "feed_forward"]
"""What an axis runs over: the residual stream; all query heads, or all key heads, side by side; the channels between
the two matrices of a feed-forward block."""
Axes = tuple[Width | None, ...]
"""Of a module's weight. None stays as it is. A bias runs over the first one."""

_EMBEDDING: Axes = (None, "hidden")
_HEAD: Axes = (None, "hidden")
_NORM: Axes = ("hidden",)
_SQUARE: Axes = ("hidden", "hidden")

_BERT: dict[str, Axes] = {
    "word_embeddings": _EMBEDDING,
    "position_embeddings": _EMBEDDING,
    "token_type_embeddings": _EMBEDDING,
    "LayerNorm": _NORM,
    "attention.self.query": ("queries", "hidden"),
    "attention.self.key": ("keys", "hidden"),
    "attention.self.value": ("keys", "hidden"),
    "attention.output.dense": ("hidden", "queries"),
    "intermediate.dense": ("feed_forward", "hidden"),
    "output.dense": ("hidden", "feed_forward"),
    "pooler.dense": _SQUARE,
    "classifier": _HEAD,
    "cls.predictions": _HEAD,
    "cls.predictions.transform.dense": _SQUARE,
    "cls.predictions.decoder": _HEAD,
}
_ROBERTA: dict[str, Axes] = _BERT | {
    "classifier.dense": _SQUARE,
    "classifier.out_proj": _HEAD,
    "lm_head": _HEAD,
    "lm_head.dense": _SQUARE,
    "lm_head.layer_norm": _NORM,
    "lm_head.decoder": _HEAD,
}
_DISTILBERT: dict[str, Axes] = {
    "word_embeddings": _EMBEDDING,
    "position_embeddings": _EMBEDDING,
    "LayerNorm": _NORM,
    "attention.q_lin": ("queries", "hidden"),
    "attention.k_lin": ("keys", "hidden"),
    "attention.v_lin": ("keys", "hidden"),
    "attention.out_lin": ("hidden", "queries"),
    "sa_layer_norm": _NORM,
    "ffn.lin1": ("feed_forward", "hidden"),
    "ffn.lin2": ("hidden", "feed_forward"),
    "output_layer_norm": _NORM,
    "pre_classifier": _SQUARE,
    "classifier": _HEAD,
    "vocab_transform": _SQUARE,
    "vocab_layer_norm": _NORM,
    "vocab_projector": _HEAD,
}
_LLAMA: dict[str, Axes] = {
    "embed_tokens": _EMBEDDING,
    "self_attn.q_proj": ("queries", "hidden"),
    "self_attn.k_proj": ("keys", "hidden"),
    "self_attn.v_proj": ("keys", "hidden"),
    "self_attn.o_proj": ("hidden", "queries"),
    "self_attn.q_norm": (None,),
    "self_attn.k_norm": (None,),
    "mlp.gate_proj": ("feed_forward", "hidden"),
    "mlp.up_proj": ("feed_forward", "hidden"),
    "mlp.down_proj": ("hidden", "feed_forward"),
    "input_layernorm": _NORM,
    "post_attention_layernorm": _NORM,
    "norm": _NORM,
    "lm_head": _HEAD,
    "score": _HEAD,
}
_ENCODERS = {"bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA, "distilbert": _DISTILBERT}
_DECODERS = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA)
_SUPPORTED = _ENCODERS | _DECODERS
"""Ends of the names of modules with weights, by model type."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """How wide a model is."""

    groups: int
    """Key heads of a layer, each with the query heads that share it. An encoder's heads are groups of one."""
    feed_forward: int
    hidden: int


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Channels that stay, as ascending indices: of the hidden ones, and layer by layer of the others."""

    hidden_D: torch.Tensor
    groups_LG: list[torch.Tensor]
    feed_forward_LF: list[torch.Tensor]


class Anatomy:
    """The widths of a model, and where they are in its weights.

    Raises:
        ConfigurationError: The architecture is unknown, and which ones are known.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.is_decoder = config.model_type in _DECODERS
        self._model = model
        self._axes = self._find_axes()
        self._prefix = layers_prefix(model)
        queries: int = config.num_attention_heads
        groups: int = config.num_key_value_heads if self.is_decoder else queries
        self.queries_per_group = queries // groups
        self.head_size: int = getattr(config, "head_dim", None) or config.hidden_size // queries
        self._feed_forward_field = "hidden_dim" if config.model_type == "distilbert" else "intermediate_size"
        self.widths = Widths(
            groups=groups, feed_forward=getattr(config, self._feed_forward_field), hidden=config.hidden_size
        )

    def hidden_of(self, groups: int) -> int:
        """Return the hidden size of an encoder with so many heads."""
        return groups * self.head_size

    def modules(self, axes: Axes) -> Iterator[tuple[int | None, str, nn.Module]]:
        """Yield layer, name and module of each weight with these axes; the layer is None outside the layers."""
        for name, found in self._axes.items():
            if found == axes:
                yield self._layer(name), name, self._model.get_submodule(name)

    def config(self, widths: Widths) -> PretrainedConfig:
        """Return the config of the model with other widths."""
        config = copy.deepcopy(self._model.config)
        config.num_attention_heads = widths.groups * self.queries_per_group
        config.hidden_size = widths.hidden
        setattr(config, self._feed_forward_field, widths.feed_forward)
        if self.is_decoder:
            config.num_key_value_heads = widths.groups
            config.head_dim = self.head_size
        return config

    def cut(self, kept: Kept, norm_scales: Mapping[str, float]) -> PreTrainedModel:
        """Return a new model with the kept channels alone.

        Args:
            kept: As many in each layer.
            norm_scales: Factor on the weights of a norm, by the name of its module.
        """
        config = self.config(
            Widths(groups=len(kept.groups_LG[0]), feed_forward=len(kept.feed_forward_LF[0]), hidden=len(kept.hidden_D))
        )
        weights = {}
        for name, tensor in self._model.state_dict().items():
            owner, _, part = name.rpartition(".")
            layer = self._layer(owner)
            for dim, width in enumerate(self._axes[owner][: tensor.dim()]):
                if width is not None:
                    indices = self._indices(width, layer, kept).to(tensor.device)
                    tensor = tensor.index_select(dim, indices)
            weights[name] = tensor * norm_scales[owner] if part == "weight" and owner in norm_scales else tensor
        return rebuild(self._model, config, weights)

    def _find_axes(self) -> dict[str, Axes]:
        kind = self._model.config.model_type
        table = _SUPPORTED.get(kind)
        owners = dict.fromkeys(name.rpartition(".")[0] for name in self._model.state_dict())
        found = {owner: _longest_match(table or {}, owner) for owner in owners}
        unknown = [owner for owner, axes in found.items() if axes is None]
        if table is None or unknown:
            where = f" ({unknown[0]} is unknown)" if table else ""
            raise ConfigurationError(
                f"the width of a {type(self._model).__name__} of type {kind} can't be pruned{where}; supported are "
                f"{', '.join(_SUPPORTED)}: use one, or prune depth"
            )
        return {owner: axes for owner, axes in found.items() if axes is not None}

    def _layer(self, module: str) -> int | None:
        if not module.startswith(self._prefix):
            return None
        return int(module.removeprefix(self._prefix).partition(".")[0])

    def _indices(self, width: Width, layer: int | None, kept: Kept) -> torch.Tensor:
        if width == "hidden":
            return kept.hidden_D
        assert layer is not None
        if width == "feed_forward":
            return kept.feed_forward_LF[layer]
        size = self.head_size * (self.queries_per_group if width == "queries" else 1)
        return (kept.groups_LG[layer][:, None] * size + torch.arange(size)).flatten()


def _longest_match(table: Mapping[str, Axes], name: str) -> Axes | None:
    ends = [end for end in table if name == end or name.endswith(f".{end}")]
    return table[max(ends, key=len)] if ends else None
