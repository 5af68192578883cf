"""The student before it learns."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.models import is_causal, keep_endings, layers_prefix, model_shape, rebuild, tokenizer_sha256
from stillhouse.recipe import StudentConfig
from stillhouse.student.influence import block_influence
from stillhouse.student.layers import layer_map

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a student starts."""

    model: PreTrainedModel
    """In evaluation mode."""
    layers: tuple[int, ...] | None
    """Layers of the model that it comes from, from 0; None for random weights."""
    summary: str
    """One line for people."""


def initialise(
    config: StudentConfig,
    *,
    teacher: PreTrainedModel | None,
    source: PreTrainedModel | None = None,
    sample: Sequence[Sequence[int]] = (),
) -> Start:
    """Build the student: layers of the teacher or of a checkpoint of its own, or random weights.

    The caller's random state is left as it was.

    Args:
        config: Of the recipe.
        teacher: The default to take layers from, and the model whose architecture is changed; None where it is a
            server.
        source: The checkpoint that ``config.source`` names, loaded for the same task. It takes the teacher's place.
        sample: Token ids of documents, to measure block influence on.

    Raises:
        ConfigurationError: The layers don't fit or can't be found, or the architecture is refused.
    """
    origin, name = (teacher, "teacher") if source is None else (source, "checkpoint")
    if origin is None:
        raise StageBug("a student without a teacher needs a checkpoint of its own")
    if config.architecture is not None:
        student = _random(origin, config)
        return Start(model=student, layers=None, summary=f"{_size(student, teacher)} with random weights")
    num_layers = model_shape(origin).layers
    needs_influence = config.layer_map == "block-influence" or (config.layer_map is None and is_causal(origin))
    shrinks = config.layers is not None and config.layers < num_layers
    influences = block_influence(origin, sample) if needs_influence and shrinks else None
    plain = config if shrinks or not needs_influence else config.model_copy(update={"layer_map": None})
    layers = layer_map(num_layers, plain, influences)
    student = keep_layers(origin, layers)
    told = ", ".join(map(str, layers))
    return Start(model=student, layers=layers, summary=f"{_size(student, teacher)} from {name} layers {told}")


def keep_layers(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Return a model with copies of the chosen layers, and of everything outside the layers: embeddings, head.

    Works for any model whose layers are one list of modules as long as its ``num_hidden_layers``.

    Raises:
        ConfigurationError: The layers can't be found.
    """
    prefix = layers_prefix(model)
    new_index = {old: new for new, old in enumerate(layers)}
    weights = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(prefix):
            weights[name] = tensor
            continue
        index, _, rest = name.removeprefix(prefix).partition(".")
        if int(index) in new_index:
            weights[f"{prefix}{new_index[int(index)]}.{rest}"] = tensor
    return rebuild(model, layers_config(model, layers), weights)


def layers_config(model: PreTrainedModel, layers: Sequence[int]) -> PretrainedConfig:
    """Return the config of a model with some of its layers."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = [model.config.layer_types[index] for index in layers]
    return config


def check_same_tokenizer(student: Tokenizer, teacher: Tokenizer) -> None:
    """Refuse a student that reads other tokens than its teacher.

    Raises:
        ConfigurationError: Their tokenizers differ; the message says in what.
    """
    if tokenizer_sha256(student) == tokenizer_sha256(teacher):
        return
    if len(student) != len(teacher):
        what = f"{len(student)} and {len(teacher)} tokens"
    elif student.get_vocab() != teacher.get_vocab():
        what = "other tokens"
    else:
        what = "other rules or special tokens"
    raise ConfigurationError(
        f"student and teacher have different tokenizers ({what}); start from a checkpoint with the teacher's"
    )


def _random(origin: PreTrainedModel, config: StudentConfig) -> PreTrainedModel:
    changed = copy.deepcopy(origin.config)
    for name, value in (config.architecture or {}).items():
        if not hasattr(changed, name):
            raise ConfigurationError(f"student.architecture: a {type(origin).__name__} has no '{name}'; correct it")
        setattr(changed, name, value)
    if isinstance(getattr(changed, "layer_types", None), list):
        changed.layer_types = changed.layer_types[: changed.num_hidden_layers]
    if changed.get_text_config().vocab_size != origin.config.get_text_config().vocab_size:
        raise ConfigurationError("student.architecture changes vocab_size, which the tokenizer decides")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            student = type(origin)(changed).eval()
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(f"student.architecture is refused ({reason}); correct it") from error
    keep_endings(student, origin)
    return student


def _size(student: PreTrainedModel, teacher: PreTrainedModel | None) -> str:
    own = student.num_parameters()
    share = f" {own / teacher.num_parameters():.0%} of the teacher," if teacher else ""
    return f"{own / 1e6:.1f}M parameters,{share}"
