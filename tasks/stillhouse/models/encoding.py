"""From texts to padded batches of token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids of N texts, in their order, without padding."""

    ids: list[list[int]]
    truncated: list[bool]
    """Whether the text was longer than it may be."""


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> Encoded:
    """Tokenize texts, special tokens included, cut to ``max_tokens``."""
    if not texts:
        return Encoded(ids=[], truncated=[])
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    ids = tokenizer(list(texts), truncation=False, **options)["input_ids"]
    truncated = [len(row) > max_tokens for row in ids]
    if long := [index for index, is_long in enumerate(truncated) if is_long]:
        cut = tokenizer([texts[index] for index in long], truncation=True, max_length=max_tokens, **options)
        for index, row in zip(long, cut["input_ids"], strict=True):
            ids[index] = row
    return Encoded(ids=ids, truncated=truncated)


def check_max_tokens(model: PreTrainedModel, max_tokens: int) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        ConfigurationError: ``max_tokens`` exceeds the model's positions.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and max_tokens > limit:
        raise ConfigurationError(f"max_tokens is {max_tokens} and the model has {limit} positions; lower max_tokens")


def length_buckets(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut indices into batches of similar length, the longest first, so that hardly anything is padding.

    Starting with the longest shows at once whether the memory suffices.

    Args:
        lengths: Tokens of each sequence.
        batch_size: Sequences per batch; the last batch may be smaller.

    Returns:
        Every index once.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def pad_batch(ids: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack B sequences, padded on the right to the longest of them.

    Returns:
        ids_BT and mask_BT (1 for a token, 0 for padding), int64.
    """
    width = max(map(len, ids))
    ids_BT = np.full((len(ids), width), pad_token_id, dtype=np.int64)
    mask_BT = np.zeros((len(ids), width), dtype=np.int64)
    for row, sequence in enumerate(ids):
        ids_BT[row, : len(sequence)] = sequence
        mask_BT[row, : len(sequence)] = 1
    return torch.from_numpy(ids_BT), torch.from_numpy(mask_BT)
