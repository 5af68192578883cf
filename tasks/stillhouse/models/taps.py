"""Reading what happens inside a model while it runs, by hooks that know nothing of its architecture."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.models.layers import find_layers

_ATTENTION = frozenset({"attention", "attn", "self_attn", "self_attention", "selfattention"})
"""Last parts of a self-attention module's name, in lower case."""
_PROJECTIONS = {
    "queries": frozenset({"q_proj", "query", "query_proj", "q_lin", "wq", "q"}),
    "keys": frozenset({"k_proj", "key", "key_proj", "k_lin", "wk", "k"}),
    "values": frozenset({"v_proj", "value", "value_proj", "v_lin", "wv", "v"}),
}
"""Last parts of the projections' names, in lower case."""
_FUSED = {("Linear", "wqkv"): False, ("Conv1D", "c_attn"): False, ("Linear", "query_key_value"): True}
"""Projections to queries, keys and values at once, by class and name: whether each head has its three side by side
(GPT-NeoX), or all heads' queries come first (ModernBERT, GPT-2). No other name tells for certain."""


@dataclass(frozen=True, kw_only=True)
class TapRequest:
    """Layers of which something is wanted, numbered from 1."""

    hidden: frozenset[int] = frozenset()
    """Hidden states; 0 asks for what the first layer is given."""
    attention: frozenset[int] = frozenset()
    """Attention maps."""
    qkv: frozenset[int] = frozenset()
    """Queries, keys and values."""

    def __or__(self, other: "TapRequest") -> "TapRequest":
        """Return what either asks for."""
        return TapRequest(
            hidden=self.hidden | other.hidden,
            attention=self.attention | other.attention,
            qkv=self.qkv | other.qkv,
        )


@dataclass(frozen=True, kw_only=True)
class Captured:
    """What a forward pass over B sequences of T tokens, with padding, left behind, by number of the layer."""

    hidden: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Each layer's output (B, T, D), before any norm that follows the last layer."""
    attention: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Weights (B, H, T, T) of queries and keys, as applied to the values: in training mode after their dropout."""
    queries: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """The projections' outputs (B, T, D), heads side by side, before any rotary embedding."""
    keys: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """As the queries; narrower with grouped-query attention."""
    values: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """As the keys."""

    def detached(self) -> "Captured":
        """Return the same values without their history."""
        return Captured(
            **{
                part.name: {layer: states.detach() for layer, states in getattr(self, part.name).items()}
                for part in fields(self)
            }
        )

    def check(self, request: TapRequest) -> None:
        """Make sure that everything asked for is there.

        Raises:
            StageBug: Something is missing.
        """
        wanted = dict.fromkeys(_PROJECTIONS, request.qkv)
        wanted |= {"hidden": request.hidden, "attention": request.attention}
        for name, layers in wanted.items():
            if missing := sorted(layers - getattr(self, name).keys()):
                raise StageBug(f"no {name} of layer {missing[0]} were captured; run the model before asking for them")


class Tap:
    """Hooks on a model that keep what was asked for until `take`, with its history.

    What a forward pass keeps replaces what the one before it did. A model whose states shall feed a loss as constants
    runs under ``torch.no_grad``; tensors of ``torch.inference_mode`` can't be used in a backward pass.

    Asking for attention maps switches the model to eager attention until `close`: the fast kernels have no maps.
    """

    def __init__(self, model: PreTrainedModel, request: TapRequest) -> None:
        """Place the hooks.

        Raises:
            ConfigurationError: The model has no such layer, or something in it can't be found.
        """
        self._model = model
        self._request = request
        self._kept: dict[str, dict[int, torch.Tensor]] = {part.name: {} for part in fields(Captured)}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._implementation: str | None = None
        self._layers = find_layers(model)
        self._check_depth()
        try:
            self._place()
        except BaseException:
            self.close()
            raise

    def take(self) -> Captured:
        """Return what the last forward pass left behind, and forget it.

        Raises:
            StageBug: There was no forward pass since the last call.
        """
        captured = Captured(**{name: dict(states) for name, states in self._kept.items()})
        for states in self._kept.values():
            states.clear()
        captured.check(self._request)
        return captured

    def close(self) -> None:
        """Remove the hooks and give the model its attention kernel back. May be called twice."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for states in self._kept.values():
            states.clear()
        if self._implementation is not None:
            self._model.set_attn_implementation(self._implementation)
            self._implementation = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_depth(self) -> None:
        request = self._request
        wanted = request.hidden | request.attention | request.qkv
        if wanted and (max(wanted) > len(self._layers) or min(wanted) < 0):
            raise ConfigurationError(
                f"layer {max(wanted) if min(wanted) >= 0 else min(wanted)} was asked for and the "
                f"{type(self._model).__name__} has layers 1 to {len(self._layers)}; mend the layer pairs"
            )
        if 0 in request.attention | request.qkv:
            raise ConfigurationError("layer 0, the embeddings' output, has hidden states alone; mend the layer pairs")

    def _place(self) -> None:
        for number in self._request.hidden:
            if number == 0:
                self._hooks.append(self._layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True))
            else:
                self._on_output(self._layers[number - 1], "hidden", number)
        if self._request.attention:
            self._implementation = self._model.config._attn_implementation
            self._model.set_attn_implementation("eager")
        for number in self._request.attention:
            self._on_attention(number)
        for number in self._request.qkv:
            self._on_projections(number)

    def _keep_input(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._kept["hidden"][0] = args[0] if args else kwargs["hidden_states"]

    def _on_output(self, module: nn.Module, name: str, number: int) -> None:
        def keep(_module: nn.Module, _args: object, output: Any) -> None:
            self._kept[name][number] = output[0] if isinstance(output, tuple) else output

        self._hooks.append(module.register_forward_hook(keep))

    def _on_attention(self, number: int) -> None:
        kind = type(self._model).__name__

        def keep(_module: nn.Module, _args: object, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if not isinstance(weights, torch.Tensor) or weights.dim() != 4 or weights.shape[-1] != weights.shape[-2]:
                raise ConfigurationError(
                    f"a {kind} hands out no attention maps; compare qkv-relation or hidden states instead"
                )
            self._kept["attention"][number] = weights

        self._hooks.append(self._find(number, _ATTENTION, "attention module").register_forward_hook(keep))

    def _on_projections(self, number: int) -> None:
        for name, module in self._layers[number - 1].named_modules():
            interleaved = _FUSED.get((type(module).__name__, name.rpartition(".")[2].lower()))
            if interleaved is not None:
                self._on_fused(module, number, interleaved=interleaved)
                return
        for part, names in _PROJECTIONS.items():
            self._on_output(self._find(number, names, f"projection to {part}"), part, number)

    def _on_fused(self, module: nn.Module, number: int, *, interleaved: bool) -> None:
        kind = type(self._model).__name__
        heads = self._model.config.get_text_config().num_attention_heads

        def keep(_module: nn.Module, args: tuple[torch.Tensor, ...], fused_BTX: torch.Tensor) -> None:
            if fused_BTX.shape[-1] != 3 * args[0].shape[-1]:
                raise ConfigurationError(
                    f"queries, keys and values of a {kind} can't be told apart; compare hidden states instead"
                )
            if interleaved:
                heads_BTHX = fused_BTX.reshape(*fused_BTX.shape[:-1], heads, -1)
                parts = [part.flatten(-2) for part in heads_BTHX.chunk(3, dim=-1)]
            else:
                parts = list(fused_BTX.chunk(3, dim=-1))
            for name, part in zip(_PROJECTIONS, parts, strict=True):
                self._kept[name][number] = part

        self._hooks.append(module.register_forward_hook(keep))

    def _find(self, number: int, names: frozenset[str], what: str) -> nn.Module:
        """Return the one outermost module of a layer with one of the names."""
        found: dict[str, nn.Module] = {}
        for name, module in self._layers[number - 1].named_modules():
            nested = any(name.startswith(f"{outer}.") for outer in found)
            if name.rpartition(".")[2].lower() in names and not nested:
                found[name] = module
        if len(found) != 1:
            raise ConfigurationError(
                f"layer {number} of a {type(self._model).__name__} has {len(found)} modules that look like its {what}; "
                "compare hidden states instead"
            )
        return next(iter(found.values()))
