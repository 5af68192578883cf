"""The same kind of model with another config."""

import copy
from collections.abc import Mapping

import torch
from transformers import PretrainedConfig, PreTrainedModel


def rebuild(model: PreTrainedModel, config: PretrainedConfig, weights: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Return a model of the same class, device and precision with another config and weights to match, in evaluation
    mode.

    It stops writing where ``model`` stops: these tokens may stand beside the config alone. The caller's random state is
    left as it was.

    Args:
        model: Left as it is.
        config: Of the new model.
        weights: All of them, by name; copied.

    Raises:
        RuntimeError: The weights are not those of such a model.
    """
    with torch.random.fork_rng(devices=[]):
        made: PreTrainedModel = type(model)(config)
    made.load_state_dict(dict(weights))
    made.tie_weights()
    keep_endings(made, model)
    return made.to(device=model.device, dtype=model.dtype).eval()


def keep_endings(student: PreTrainedModel, origin: PreTrainedModel) -> None:
    """Let a student that writes stop where its origin stops."""
    if origin.can_generate():
        student.generation_config = copy.deepcopy(origin.generation_config)
