"""A student made of some of the teacher's layers."""

import copy
import logging

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from stillhouse.contract import ConfigurationError
from stillhouse.recipe import StudentConfig

logger = logging.getLogger(__name__)


def layer_map(num_teacher_layers: int, config: StudentConfig) -> tuple[int, ...]:
    """Return the teacher layer, from 0, under each student layer.

    ``alternate`` is ``round(linspace(0, n - 1, k))``: from 12 to 6 layers the 0 2 4 7 9 11 of DistilBERT (Sanh et al.
    2019).

    Raises:
        ConfigurationError: The student has more layers than the teacher, or names one that the teacher lacks.
    """
    if config.layers > num_teacher_layers:
        raise ConfigurationError(
            f"the student has more layers than the teacher ({config.layers} and {num_teacher_layers}); "
            "lower student.layers"
        )
    if isinstance(config.layer_map, tuple):
        if config.layer_map[-1] >= num_teacher_layers:
            raise ConfigurationError(
                f"student.layer_map names layer {config.layer_map[-1]} and the teacher ends at {num_teacher_layers - 1}"
            )
        return config.layer_map
    return tuple(int(index) for index in np.round(np.linspace(0, num_teacher_layers - 1, config.layers)))


def student_from_teacher(teacher: PreTrainedModel, config: StudentConfig) -> PreTrainedModel:
    """Build a student with copies of the chosen layers, and of everything outside the layers: embeddings, head.

    Works for any model whose layers are one list of modules as long as its ``num_hidden_layers``. The caller's random
    state is left as it was.

    Raises:
        ConfigurationError: The layers don't fit the teacher, or can't be found in it.
    """
    num_layers = teacher.config.num_hidden_layers
    chosen = layer_map(num_layers, config)
    prefix = _layers_prefix(teacher, num_layers)
    student_config = copy.deepcopy(teacher.config)
    student_config.num_hidden_layers = len(chosen)
    if isinstance(getattr(student_config, "layer_types", None), list):
        student_config.layer_types = [teacher.config.layer_types[index] for index in chosen]
    with torch.random.fork_rng(devices=[]):
        student = type(teacher)(student_config)
    new_index = {old: new for new, old in enumerate(chosen)}
    weights = {}
    for name, tensor in teacher.state_dict().items():
        if not name.startswith(prefix):
            weights[name] = tensor
            continue
        index, _, rest = name.removeprefix(prefix).partition(".")
        if int(index) in new_index:
            weights[f"{prefix}{new_index[int(index)]}.{rest}"] = tensor
    student.load_state_dict(weights)
    logger.info("student with %d of %d layers: %s", len(chosen), num_layers, chosen)
    return student.eval()


def _layers_prefix(model: PreTrainedModel, num_layers: int) -> str:
    found: list[str] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not nested:
            found.append(name)
    if len(found) != 1:
        raise ConfigurationError(
            f"a {type(model).__name__} has {len(found)} lists of {num_layers} layers, so its layers can't be told; "
            "use a teacher with one"
        )
    return f"{found[0]}."
