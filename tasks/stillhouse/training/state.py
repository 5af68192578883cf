"""The whole state of a training as tensors and plain data: no pickle."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

MODEL = "model."
OPTIMIZER = "optimizer."
CPU_RANDOM = "random.cpu"
CUDA_RANDOM = "random.cuda."


def model_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, each once even if the model ties it to another."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def capture(model: PreTrainedModel, optimizer: Any, scheduler: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and plain data from which `restore` goes on. The tensors may share memory with the training's."""
    tensors = {MODEL + name: tensor.detach() for name, tensor in model_tensors(model).items()}
    optimizer_state = optimizer.state_dict()
    for index, entry in optimizer_state["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{name}": tensor for name, tensor in entry.items()}
    tensors[CPU_RANDOM] = torch.get_rng_state()
    for device in range(torch.cuda.device_count()):
        tensors[f"{CUDA_RANDOM}{device}"] = torch.cuda.get_rng_state(device)
    version, internal, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    plain = {
        "learning_rates": [group["lr"] for group in optimizer_state["param_groups"]],
        "scheduler": scheduler.state_dict(),
        "python_random": [version, list(internal), gauss],
        "numpy_random": [kind, [int(key) for key in keys], *rest],
    }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, plain


def restore(
    tensors: Mapping[str, torch.Tensor],
    plain: Mapping[str, Any],
    model: PreTrainedModel,
    optimizer: Any,
    scheduler: Any,
) -> None:
    """Go on from what `capture` returned, in objects built the same way."""
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            tensor.copy_(tensors[MODEL + name])
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(OPTIMIZER):
            index, _, name = key.removeprefix(OPTIMIZER).partition(".")
            entries.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    rates = plain["learning_rates"]
    optimizer.load_state_dict(
        {
            "state": entries,
            "param_groups": [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)],
        }
    )
    scheduler.load_state_dict(plain["scheduler"])
    torch.set_rng_state(tensors[CPU_RANDOM])
    for device in range(torch.cuda.device_count()):
        torch.cuda.set_rng_state(tensors[f"{CUDA_RANDOM}{device}"], device)
    version, internal, gauss = plain["python_random"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = plain["numpy_random"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
