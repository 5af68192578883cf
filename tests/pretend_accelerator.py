"""An accelerator for machines without one: tensors that live elsewhere, and a PyTorch that sees one such device.

What lies on it is kept in main memory and computed by the CPU, but PyTorch takes it for another device's: it can't be
combined with a tensor of the CPU, and must be brought back to be read. So code that leaves a tensor behind fails here
as it would on a GPU. Kernels, streams and memory of a real one are not imitated.

`install` changes the whole process for good: tests run it in a process of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"

aten = torch.ops.aten
CROSSES = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}
"""May get tensors of the CPU beside the accelerator's, as on a GPU: copies, and places that are given by the CPU."""


class _Backend:
    """What PyTorch asks a kind of device."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Nothing draws there."""


class Elsewhere(torch.Tensor):
    """A tensor on the accelerator, whose numbers ``inner`` holds."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()


class _Everything(TorchDispatchMode):
    """Sees operations that no tensor of the accelerator takes part in, such as those that make the first one."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def install() -> Iterator[None]:
    """Let PyTorch see the accelerator."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    library = torch.library.Library("aten", "IMPL")
    # Of what PyTorch does below the reach of a dispatch mode: it makes tensors of Python's lists.
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    torch.inference_mode = torch.no_grad  # type: ignore[misc,assignment]  # PyTorch refuses views of such tensors in it
    with _Everything():
        yield


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> Elsewhere:
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: torch.Tensor, target: Elsewhere, non_blocking: bool = False) -> Elsewhere:
    target.inner.copy_(source)
    return target


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    own = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    if own and function not in CROSSES:
        _refuse_what_a_gpu_would(function, tensors)
    plain, named = tree_map(lambda leaf: leaf.inner if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    stays = isinstance(args[0], Elsewhere) if function is aten.copy_.default else bool(own)
    if (device := kwargs.get("device")) is not None:
        named["device"], stays = torch.device("cpu"), torch.device(device).type == NAME
    found = function(*plain, **named)

    def wrapped(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        # An operation in place returns what it was given.
        return own[id(leaf)] if id(leaf) in own else Elsewhere(leaf)

    return tree_map(wrapped, found) if stays else found


def _refuse_what_a_gpu_would(function: Any, tensors: list[torch.Tensor]) -> None:
    # A number of the CPU may take part.
    if strangers := [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]:
        raise RuntimeError(f"{function}: expected all tensors on one device, found {NAME} and {strangers[0].device}")
    if function is aten.cumsum.default and tensors[0].is_floating_point():
        raise RuntimeError("cumsum of floating-point numbers has no deterministic implementation on a GPU")
