"""Linear layers keep their weights as small integers, by torchao."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    PerRow,
    quantize_,
)
from transformers import PreTrainedModel, TorchAoConfig

from stillhouse.compression.base import Calibration, Cut, Operation, Subject
from stillhouse.contract import ConfigurationError
from stillhouse.models import linear_layers, save_model
from stillhouse.models.folders import KINDS
from stillhouse.recipe.compression import QuantizeStep, Scheme

INT4_GROUP = 32
"""Neighbouring weights of a row that share one scale."""

_SAID: dict[Scheme, str] = {
    "int8": "int8 weights, a scale for each output",
    "int8-dynamic": "int8 weights, a scale for each output, and int8 inputs, a scale for each token",
    "int4": f"int4 weights, a scale for every {INT4_GROUP}, in a byte each: torchao packs them on accelerators only",
}


@dataclass(frozen=True)
class Quantization(Operation):
    """Rounds the linear layers of the body's layers; embeddings, output head and norms stay as they are.

    Weights of four bits take a byte each, as those of eight do: none of torchao's packed layouts both runs on a CPU and
    is written as safetensors. They cost accuracy and save nothing until one does.
    """

    step: QuantizeStep

    def cut(self, subject: Subject, calibration: Calibration, *, turn: int, rounds: int) -> Cut:
        """Prepare a model that heals: it computes with rounded weights and learns through the rounding.

        Without healing the model is left as it is until `write`.

        Raises:
            ConfigurationError: The layers have no linear modules, or rows that groups of weights don't divide.
        """
        linears = linear_layers(subject.model)
        if self.step.scheme == "int4":
            _check_groups(linears)
        if self.step.heal is not None:
            for name in linears:
                _swap(subject.model, name, RoundedLinear(self.step.scheme))
        learned = ", learned while rounded" if self.step.heal is not None else ""
        did = f"{len(linears)} linear layers have {_SAID[self.step.scheme]}{learned}; all else stays exact"
        return Cut(subject=subject, did=did)

    def write(self, subject: Subject, folder: Path) -> None:
        """Write a folder that transformers reads where torchao is installed. The subject's layers are plain after it.

        Raises:
            OSError: The folder can't be written.
        """
        model = subject.model
        linears = linear_layers(model)
        for name, linear in linears.items():
            if isinstance(linear, RoundedLinear):
                _swap(model, name, nn.Linear(1, 1, device="meta"))
        exact = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and n not in linears]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as floats:
            save_model(model, subject.tokenizer, Path(floats))
            quantized = KINDS[subject.task].loader.from_pretrained(
                floats,
                quantization_config=TorchAoConfig(config_of(self.step.scheme), modules_to_not_convert=exact),
                dtype=model.dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
            save_model(quantized, subject.tokenizer, folder)
        for path in folder.glob("*.safetensors"):
            _order_header(path)


class RoundedLinear(nn.Linear):
    """Computes what its quantized self would, by the code that quantizes, and learns as if nothing were rounded.

    Gradients pass straight through the rounding (Bengio et al. 2013; Jacob et al. 2018). Weights have the names that
    they have in a plain layer.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(1, 1, device="meta")
        self.scheme = scheme

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the quantized layer's output."""
        if self.scheme == "int8-dynamic":
            input = _straight_through(input, Int8Tensor.from_hp(input.detach(), PerRow()).dequantize())
        return nn.functional.linear(input, _straight_through(self.weight, self._rounded_weight()), self.bias)

    def _rounded_weight(self) -> torch.Tensor:
        holder = nn.Linear(1, 1, bias=False, device="meta")
        holder.weight = nn.Parameter(self.weight.detach(), requires_grad=False)
        quantize_(holder, config_of(self.scheme))
        rounded: torch.Tensor = holder.weight.dequantize()
        return rounded


def _straight_through(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return exactly ``rounded``, with the gradient of ``exact``."""
    return rounded + (exact - exact.detach())


def config_of(scheme: Scheme) -> Any:
    """Return what torchao is asked for."""
    match scheme:
        case "int8":
            return Int8WeightOnlyConfig()
        case "int8-dynamic":
            return Int8DynamicActivationInt8WeightConfig()
        case "int4":
            return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(INT4_GROUP))  # type: ignore[attr-defined]


def _check_groups(linears: Mapping[str, nn.Linear]) -> None:
    for name, linear in linears.items():
        if linear.in_features % INT4_GROUP:
            raise ConfigurationError(
                f"int4 groups {INT4_GROUP} weights of a row and {name} has rows of {linear.in_features}; "
                "choose scheme int8"
            )


def _swap(model: PreTrainedModel, name: str, new: nn.Linear) -> None:
    """Put a linear layer in the place of another one, with its parameters."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    new.in_features, new.out_features = old.in_features, old.out_features
    new.weight, new.bias = old.weight, old.bias
    model.set_submodule(name, new.train(old.training))


def _order_header(path: Path) -> None:
    """Sort what a safetensors header says about tensors: its writer hands it out in another order each time.

    Equal models shall give equal bytes.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(ordered.ljust(length))
