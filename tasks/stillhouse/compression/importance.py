"""How active each channel of a model is on some documents."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.compression.channels import Anatomy, Kept, Widths
from stillhouse.contract import ConfigurationError
from stillhouse.models import model_shape

_TINY = 1e-30
"""Keeps a token whose states are all zero from being divided by its size."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """What Minitron (Muralidharan et al. 2024) prunes by: absolute activations, their mean over the tokens of a
    document, and the L2 norm of that over documents.
    """

    hidden_D: torch.Tensor
    """Outputs of the body's norms, added up over them."""
    groups_LG: torch.Tensor
    """Size of what each head hands to the output projection, added up over the heads of a group."""
    feed_forward_LF: torch.Tensor
    """What enters the second matrix of a feed-forward block."""
    energies_D: dict[str, torch.Tensor]
    """Of each norm, by name: what share of the squares by whose mean it divides comes from which channel."""

    def keep(self, widths: Widths) -> Kept:
        """Return the most important channels; of equals, the first."""
        return Kept(
            hidden_D=_largest(self.hidden_D, widths.hidden),
            groups_LG=[_largest(scores_G, widths.groups) for scores_G in self.groups_LG],
            feed_forward_LF=[_largest(scores_F, widths.feed_forward) for scores_F in self.feed_forward_LF],
        )

    def norm_scales(self, hidden_D: torch.Tensor) -> dict[str, float]:
        """Return by what to multiply the weights of each norm, so that the kept outputs stay as large as they were.

        A norm divides by the size of its whole input, and the most active channels alone are larger on average.
        """
        return {
            name: float((energy_D[hidden_D].mean() / energy_D.mean()).sqrt())
            for name, energy_D in self.energies_D.items()
        }


def measure_importance(model: PreTrainedModel, anatomy: Anatomy, documents: Sequence[Sequence[int]]) -> Importance:
    """Run documents one by one, without padding, through a model's body, and return how active its channels are.

    Args:
        model: Put into evaluation mode.
        anatomy: The model's.
        documents: Token ids.

    Raises:
        ConfigurationError: There is no document.
    """
    documents = [ids for ids in documents if len(ids)]
    if not documents:
        raise ConfigurationError("pruning width needs documents to measure activations on; check the data section")
    meter = _Meter(anatomy.head_size)
    body = {id(module) for module in model.base_model.modules()}
    norms = [(name, norm) for _, name, norm in anatomy.modules(("hidden",)) if id(norm) in body]
    projections = [module for _, _, module in anatomy.modules(("hidden", "queries"))]
    blocks = [module for _, _, module in anatomy.modules(("hidden", "feed_forward"))]
    with ExitStack() as hooks, torch.inference_mode():
        for name, norm in norms:
            hooks.callback(norm.register_forward_hook(meter.on_norm(name)).remove)
        for layer, module in enumerate(projections):
            hooks.callback(module.register_forward_pre_hook(meter.on_heads(layer)).remove)
        for layer, module in enumerate(blocks):
            hooks.callback(module.register_forward_pre_hook(meter.on_channels(layer)).remove)
        model.eval()
        for ids in documents:
            model.base_model(input_ids=torch.tensor([list(ids)], device=model.device))
    layers = range(model_shape(model).layers)
    heads_LN = torch.stack([meter.squares["heads", layer].sqrt() for layer in layers])
    return Importance(
        hidden_D=torch.stack([meter.squares["hidden", name].sqrt() for name, _ in norms]).sum(0),
        groups_LG=heads_LN.reshape(len(layers), -1, anatomy.queries_per_group).sum(-1),
        feed_forward_LF=torch.stack([meter.squares["feed-forward", layer].sqrt() for layer in layers]),
        energies_D={name: meter.squares["energy", name] for name, _ in norms},
    )


class _Meter:
    """Hooks that add up what they see, on the CPU: not every accelerator has float64."""

    def __init__(self, head_size: int) -> None:
        self._head_size = head_size
        self.squares: dict[tuple[str, str | int], torch.Tensor] = defaultdict(
            lambda: torch.zeros((), dtype=torch.float64)
        )

    def on_norm(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def measure(module: nn.Module, inputs: tuple[torch.Tensor, ...], output_BTD: torch.Tensor) -> None:
            states_TD = inputs[0][0].cpu().double()
            if isinstance(module, nn.LayerNorm):
                states_TD = states_TD - states_TD.mean(-1, keepdim=True)
            squares_TD = states_TD.square()
            self._add("energy", name, (squares_TD / squares_TD.mean(-1, keepdim=True).clamp_min(_TINY)).sum(0))
            self._add("hidden", name, output_BTD[0].cpu().double().abs().mean(0).square())

        return measure

    def on_heads(self, layer: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def measure(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            states_TD = inputs[0][0].cpu().double()
            heads_TNK = states_TD.reshape(len(states_TD), -1, self._head_size)
            self._add("heads", layer, heads_TNK.norm(dim=-1).mean(0).square())

        return measure

    def on_channels(self, layer: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def measure(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self._add("feed-forward", layer, inputs[0][0].cpu().double().abs().mean(0).square())

        return measure

    def _add(self, kind: str, where: str | int, values: torch.Tensor) -> None:
        self.squares[kind, where] = self.squares[kind, where] + values


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values
