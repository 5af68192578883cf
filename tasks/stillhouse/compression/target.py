"""How small a model is, and the largest size that is small enough."""

import bisect
import math
import statistics
import time
from collections.abc import Sequence
from typing import Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.compression.base import Calibration
from stillhouse.contract import ConfigurationError
from stillhouse.models import count_parameters
from stillhouse.recipe.compression import Target

WARM_UP_PASSES = 3
TIMED_PASSES = 15

_NAMES = {"parameters": "of the parameters", "bytes": "of the bytes", "latency": "of the latency"}


def num_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of the weights as safetensors hold them; those that are tied count once."""
    distinct = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in distinct.values())


def relative_size(model: PreTrainedModel, config: PretrainedConfig, measure: Literal["parameters", "bytes"]) -> float:
    """Return the size of a model of the same class with another config, as a share of the model's own."""
    size = count_parameters if measure == "parameters" else num_bytes
    return size(_candidate(model, config, "meta")) / size(model)


def latency_share(before: PreTrainedModel, after: PreTrainedModel, ids: Sequence[int]) -> float:
    """Return the time that a document takes ``after``, as a share of what it takes ``before``.

    Medians of some passes at batch 1, in which the two alternate, so that a busy machine treats them alike.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for turn in range(WARM_UP_PASSES + TIMED_PASSES):
            for model, taken in zip((before, after), seconds, strict=True):
                ids_BT = torch.tensor([list(ids)], device=model.device)
                started = time.perf_counter()
                # Back to the CPU, for which an accelerator has to be done.
                model(input_ids=ids_BT).logits[:, -1:].cpu()
                if turn >= WARM_UP_PASSES:
                    taken.append(time.perf_counter() - started)
    return statistics.median(seconds[1]) / statistics.median(seconds[0])


def largest_within(
    model: PreTrainedModel, target: Target, configs: Sequence[PretrainedConfig], calibration: Calibration
) -> int:
    """Return the index of the first candidate that meets the target.

    Candidates are weighed, or timed, by models of random weights; of their order, a few are tried (bisection).

    Args:
        model: What the target is a share of; put into evaluation mode.
        target: Of the recipe.
        configs: Of the candidates, from large to small.
        calibration: Its document of median length is what latency is measured on; sizes need none.

    Raises:
        ConfigurationError: Not even the last candidate meets the target, and the nearest share that one does; there
            is no candidate; or there is no document.
    """
    if not configs:
        raise ConfigurationError("the model is as small as this step can make it; leave the step out")
    shares: dict[int, float] = {}

    def share(index: int) -> float:
        if index not in shares:
            shares[index] = _share(model, configs[index], target, calibration)
        return shares[index]

    last = len(configs) - 1
    if share(last) > target.share:
        nearest = math.ceil(100 * share(last)) / 100
        raise ConfigurationError(
            f"target.share is {target.share} and the smallest model that this step can make has {nearest:.2f} "
            f"{_NAMES[target.measure]}; give at least that" + (", or leave the step out" if nearest >= 1 else "")
        )
    return bisect.bisect_left(range(last), True, key=lambda index: share(index) <= target.share)


def _share(model: PreTrainedModel, config: PretrainedConfig, target: Target, calibration: Calibration) -> float:
    if target.measure == "latency":
        return latency_share(model.eval(), _candidate(model, config, "cpu").to(model.device), _document(calibration))
    return relative_size(model, config, target.measure)


def _candidate(model: PreTrainedModel, config: PretrainedConfig, device: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        made: PreTrainedModel = type(model)(config)
    return made.to(model.dtype).eval()


def _document(calibration: Calibration) -> Sequence[int]:
    documents = sorted((ids for ids in calibration.ids if ids), key=len)
    if not documents:
        raise ConfigurationError("a target of latency needs documents to measure it on; check the data section")
    return documents[len(documents) // 2]
