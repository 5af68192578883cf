"""How much each layer changes what passes through it."""

from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from stillhouse.contract import ConfigurationError
from stillhouse.models import Tap, TapRequest, model_shape

SAMPLE_DOCUMENTS = 32
"""Documents that suffice to rank layers."""


def block_influence(model: PreTrainedModel, sample: Sequence[Sequence[int]]) -> list[float]:
    """Return the influence of each layer: one minus the mean cosine of its input and its output (Men et al. 2024).

    Averaged over the tokens of the first `SAMPLE_DOCUMENTS` documents, which run one by one, without padding.

    Args:
        model: Put into evaluation mode.
        sample: Token ids of documents.

    Raises:
        ConfigurationError: There is no document, or the model's layers can't be found.
    """
    layers = model_shape(model).layers
    totals = torch.zeros(layers, dtype=torch.float64)
    tokens = 0
    model.eval()
    with torch.no_grad(), Tap(model, TapRequest(hidden=frozenset(range(layers + 1)))) as tap:
        for ids in [ids for ids in sample if len(ids)][:SAMPLE_DOCUMENTS]:
            model.base_model(input_ids=torch.tensor([list(ids)], device=model.device))
            hidden = tap.take().hidden
            for layer in range(layers):
                # On the CPU: not every accelerator has float64.
                before_TD, after_TD = hidden[layer][0].cpu().double(), hidden[layer + 1][0].cpu().double()
                totals[layer] += (1 - functional.cosine_similarity(before_TD, after_TD, dim=-1)).sum()
            tokens += len(ids)
    if not tokens:
        raise ConfigurationError("block influence needs documents to measure it on; check the data section")
    return (totals / tokens).tolist()
