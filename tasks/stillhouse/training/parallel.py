"""One training over several processes, started by ``torchrun``: gloo on CPUs, NCCL on GPUs."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from stillhouse.contract import TryAgain
from stillhouse.models import find_layers
from stillhouse.training.module import DistillationModel


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def parallelise(module: DistillationModel, *, shard: bool, device: torch.device) -> nn.Module:
    """Return what to call instead of ``module``, so that gradients are averaged over all processes.

    Args:
        module: On its device.
        shard: Give each process a part of every parameter (FSDP2) instead of a copy of all (DDP).
        device: Of this process.
    """
    if num_processes() == 1:
        return module
    if not shard:
        return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (num_processes(),))
    for layer in find_layers(module.student):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)  # in place
    return module


@contextlib.contextmanager
def gradients_stay(module: nn.Module) -> Iterator[None]:
    """Within, backward passes add to this process's gradients alone: for all micro-batches of a step but the last."""
    if isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)
    else:
        yield


@contextlib.contextmanager
def lost_peers_explained() -> Iterator[None]:
    """Explain an exchange that failed since another process is gone, such as with its node.

    Raises:
        TryAgain: It is.
    """
    try:
        yield
    except RuntimeError as error:
        # NCCL has a type for it; gloo raises a plain RuntimeError that names its source file.
        if num_processes() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise TryAgain(
                "another process of this training is gone; the next try resumes from the last checkpoint"
            ) from error
        raise


def total(numbers: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes, in place."""
    if num_processes() > 1:
        dist.all_reduce(numbers)
    return numbers


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of all processes, in the order of their ranks. They are of equal shape."""
    if num_processes() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(num_processes())]
    dist.all_gather(found, tensor)
    return found


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the parts of all processes; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with whole parameters: itself, unless it is sharded. Every process must call this.

    Returns:
        Of a sharded model, a new one on the CPU in the first process; in the others what they were given.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    found = type(model)(model.config) if rank() == 0 else None
    empty = found.state_dict() if found else {}
    for name, tensor in model.state_dict().items():
        complete = whole(tensor)  # one after the other: all of them may not fit beside the shards
        if found:
            empty[name].copy_(complete)
    return found or model


def like(tensor: torch.Tensor, template: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a whole tensor if ``template`` is one, else all of it."""
    if isinstance(template, DTensor):
        return distribute_tensor(tensor.to(template.device), template.device_mesh, template.placements)
    return tensor.to(template.device)


def wait_for_all() -> None:
    """Return when every process is here."""
    if num_processes() > 1:
        dist.barrier()
