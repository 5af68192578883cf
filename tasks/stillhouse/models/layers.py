"""Where a model keeps its layers, and how large it is, whatever its architecture."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from stillhouse.contract import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The size of a model's body."""

    layers: int
    width: int
    """Of the hidden states."""
    heads: int
    """Attention heads of a layer: those of the queries."""


def model_shape(model: PreTrainedModel) -> ModelShape:
    """Return the size of a model's body, from its config."""
    config = model.config.get_text_config()
    return ModelShape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
    )


def is_causal(model: PreTrainedModel) -> bool:
    """Tell whether a model predicts the next token from those before it."""
    return any(name.endswith("ForCausalLM") for name in (type(model).__name__, *(model.config.architectures or ())))


def layers_prefix(model: PreTrainedModel) -> str:
    """Return what the names of the layers' weights start with, such as ``model.layers.``.

    Raises:
        ConfigurationError: The model has no list of modules as long as its ``num_hidden_layers``, or several of which
            none lies within another.
    """
    return f"{_find(model)[0]}."


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return a model's layers, in order.

    Raises:
        ConfigurationError: The model has no list of modules as long as its ``num_hidden_layers``, or several of which
            none lies within another.
    """
    return _find(model)[1]


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the linear modules within a model's layers, by their names in the model.

    Raises:
        ConfigurationError: The layers can't be told, or have no linear modules.
    """
    prefix = layers_prefix(model)
    found = {n: m for n, m in model.named_modules() if n.startswith(prefix) and isinstance(m, nn.Linear)}
    if not found:
        raise ConfigurationError(
            f"a {type(model).__name__} has no linear layers of torch.nn; use a model that has, as BERT or Llama"
        )
    return found


def _find(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    num_layers = model.config.get_text_config().num_hidden_layers
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not nested:
            found.append((name, module))
    if len(found) != 1:
        raise ConfigurationError(
            f"a {type(model).__name__} has {len(found)} lists of {num_layers} layers, so its layers can't be told; "
            "use a model with one"
        )
    return found[0]
