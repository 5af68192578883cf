"""Zeros among the weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import prune

from stillhouse.compression.base import Calibration, Cut, Operation, Subject
from stillhouse.contract import ConfigurationError
from stillhouse.models import linear_layers
from stillhouse.recipe.compression import SparsityStep

GROUP = 4
"""Neighbours along a layer's inputs, of which pattern 2:4 keeps two."""


@dataclass(frozen=True)
class Sparsification(Operation):
    """Zeroes the weights of least magnitude in each linear layer of the body (Han et al. 2015; for 2:4, Mishra et al.
    2021). Embeddings, heads and biases stay as they are.

    Until the model is written, each layer holds its weights under a mask, so that they stay zero whatever is learned.
    """

    step: SparsityStep

    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Place the masks; see `Operation.cut`."""
        if self.step.heal is not None and self.step.heal.lora is not None:
            # Merged, adapters would fill the zeros; kept apart, they would be lost with the mask.
            raise ConfigurationError(f"step {self.step.name} can't heal with lora, which has no zeros; leave lora out")
        linears = linear_layers(subject.model)
        for name, linear in linears.items():
            if self.step.pattern == "2:4":
                prune.custom_from_mask(linear, "weight", _two_of_four(name, linear.weight))  # type: ignore[no-untyped-call]
            else:
                prune.l1_unstructured(linear, "weight", amount=self.step.share)  # type: ignore[no-untyped-call]
        zeros = sum(int((linear.weight == 0).sum()) for linear in linears.values())
        weights = sum(linear.weight.numel() for linear in linears.values())
        return Cut(
            subject=subject,
            did=f"zeroed {zeros / weights:.1%} of the weights of {len(linears)} linear layers, {self.step.pattern}",
        )

    def write(self, subject: Subject, folder: Path) -> None:
        """Make the zeros part of the weights, and write the model; see `Operation.write`."""
        for linear in linear_layers(subject.model).values():
            prune.remove(linear, "weight")  # type: ignore[no-untyped-call]
        super().write(subject, folder)


def _two_of_four(name: str, weight_NM: torch.Tensor) -> torch.Tensor:
    """Return the mask that keeps the two largest magnitudes of each four inputs."""
    outputs, inputs = weight_NM.shape
    if inputs % GROUP:
        raise ConfigurationError(
            f"layer {name} has {inputs} inputs, which pattern 2:4 can't cut into fours; use pattern unstructured"
        )
    magnitude_NGK = weight_NM.detach().abs().reshape(outputs, -1, GROUP)
    # Stable, so that of equal ones the first two stay.
    order_NGK = magnitude_NGK.argsort(dim=-1, descending=True, stable=True)
    mask_NGK = torch.zeros_like(magnitude_NGK).scatter_(-1, order_NGK[..., : GROUP // 2], 1.0)
    return mask_NGK.reshape(outputs, inputs)
