"""Low-rank adapters: a student of few trained weights, merged in the end into a plain model."""

import logging

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from stillhouse.models import linear_layers
from stillhouse.recipe import LoraConfig

logger = logging.getLogger(__name__)


def add_lora(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """Freeze a model and give every linear layer of its body's layers an adapter (LoRA, Hu et al. 2022).

    A new classification head stays trained. The caller's random state is left as it was.

    Args:
        model: Of any architecture whose layers can be found; changed in place.
        config: Of the recipe.
        seed: Of the adapters' first factor; the second is zero, so nothing changes at first.

    Raises:
        ConfigurationError: The layers can't be found, or have no linear modules.
    """
    heads = [name for name in ("classifier", "score") if isinstance(getattr(model, name, None), nn.Module)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(
            model,
            PeftConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]
                lora_dropout=config.dropout,
                target_modules=list(linear_layers(model)),
                modules_to_save=heads or None,
            ),
        )
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    logger.info("adapters of rank %d: %.2fM weights are trained", config.rank, trained / 1e6)
    return adapted


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Return the plain model with its adapters added to the weights they belong to."""
    merged: PreTrainedModel = model.merge_and_unload()
    return merged.eval()
