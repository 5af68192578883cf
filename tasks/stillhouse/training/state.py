"""The whole state of a training as tensors and plain data: no pickle."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from stillhouse.training import parallel

MODEL = "model."
OPTIMIZER = "optimizer."
CPU_RANDOM = "random.cpu."
CUDA_RANDOM = "random.cuda."


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, each once even if the model ties it to another."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def capture(model: nn.Module, optimizer: Any, scheduler: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and plain data from which `restore` goes on. The tensors may share memory with the training's.

    Every process must call this, and gets the same: sharded tensors are made whole.
    """
    tensors = {MODEL + name: parallel.whole(tensor.detach()) for name, tensor in model_tensors(model).items()}
    optimizer_state = optimizer.state_dict()
    for index, entry in optimizer_state["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{name}": parallel.whole(tensor) for name, tensor in entry.items()}
    device = next(model.parameters()).device
    for rank, state in enumerate(parallel.gather(torch.get_rng_state().to(device))):
        tensors[f"{CPU_RANDOM}{rank}"] = state
    if torch.cuda.is_available():
        for rank, state in enumerate(parallel.gather(torch.cuda.get_rng_state().to(device))):
            tensors[f"{CUDA_RANDOM}{rank}"] = state
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
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
) -> None:
    """Go on from what `capture` returned, in objects built the same way."""
    with torch.no_grad():
        for name, tensor in model_tensors(model).items():
            tensor.copy_(parallel.like(tensors[MODEL + name], tensor))
    entries: dict[int, dict[str, torch.Tensor]] = {}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, tensor in tensors.items():
        if key.startswith(OPTIMIZER):
            index, _, name = key.removeprefix(OPTIMIZER).partition(".")
            # Moments are sharded as their parameter is; a step count is a scalar of its own.
            own = parallel.like(tensor, trained[int(index)]) if tensor.dim() else tensor
            entries.setdefault(int(index), {})[name] = own
    groups = optimizer.state_dict()["param_groups"]
    rates = plain["learning_rates"]
    optimizer.load_state_dict(
        {
            "state": entries,
            "param_groups": [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)],
        }
    )
    scheduler.load_state_dict(plain["scheduler"])
    torch.set_rng_state(tensors[f"{CPU_RANDOM}{parallel.rank()}"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors[f"{CUDA_RANDOM}{parallel.rank()}"])
    version, internal, gauss = plain["python_random"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = plain["numpy_random"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
