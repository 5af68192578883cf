"""A smaller vocabulary for a student of one task: in small models, half of the weights are embeddings."""

import copy
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError

logger = logging.getLogger(__name__)


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: Tokenizer, token_ids: Sequence[Sequence[int]], size: int
) -> tuple[PreTrainedModel, Tokenizer]:
    """Keep the embeddings of the most frequent token ids, renumbered in their order, and a tokenizer to match.

    A text whose tokens are all kept becomes the same tokens, so the model says the same about it. Of other texts,
    words with a dropped token are split into smaller kept ones, or become unknown. Special tokens are always kept.

    Only WordPiece and WordLevel are trimmed. Both match the longest known piece, and what was longest still is when
    others are gone; that does not hold for the merges of BPE nor the scores of Unigram.

    Args:
        model: A classifier; left as it is.
        tokenizer: The model's.
        token_ids: Of the training set's texts, of which the frequencies are taken.
        size: Number of ids to keep, special tokens included.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ConfigurationError: The tokenizer is of another kind, or the size does not fit it.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = state["model"]["type"]
    if kind not in ("WordPiece", "WordLevel"):
        raise ConfigurationError(f"the vocabulary of a {kind} tokenizer can't be trimmed; leave out student.vocabulary")
    new_ids = _kept(tokenizer, state, token_ids, size)
    pad = tokenizer.pad_token_id
    if new_ids[pad] != pad:
        # Some encoders count positions from the padding id.
        raise ConfigurationError(
            "the padding token does not come first in the vocabulary; leave out student.vocabulary"
        )
    trimmed = _trim_model(model, new_ids)
    logger.info("vocabulary of %d tokens, of %d", len(new_ids), len(tokenizer))
    return trimmed, _trim_tokenizer(tokenizer, state, new_ids)


def _kept(
    tokenizer: Tokenizer, state: Mapping[str, Any], token_ids: Sequence[Sequence[int]], size: int
) -> dict[int, int]:
    """Return the new id of each kept one, rising."""
    always = {token["id"] for token in state["added_tokens"]} | set(tokenizer.all_special_ids)
    always.add(state["model"]["vocab"][state["model"]["unk_token"]])
    if not len(always) <= size < len(tokenizer):
        raise ConfigurationError(
            f"student.vocabulary is {size}; give at least the {len(always)} special tokens "
            f"and less than the {len(tokenizer)} of the tokenizer"
        )
    counts = Counter(token for ids in token_ids for token in ids)
    others = sorted(set(tokenizer.get_vocab().values()) - always, key=lambda token: (-counts[token], token))
    kept = sorted(always | set(others[: size - len(always)]))
    return {old: new for new, old in enumerate(kept)}


def _trim_model(model: PreTrainedModel, new_ids: Mapping[int, int]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.vocab_size = len(new_ids)
    for name, value in vars(config).items():
        if name.endswith("_token_id") and value in new_ids:
            setattr(config, name, new_ids[value])
    embeddings = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is embeddings)
    weights = model.state_dict()
    weights[name] = weights[name][torch.tensor(list(new_ids), device=embeddings.device)]
    with torch.random.fork_rng(devices=[]):
        trimmed = type(model)(config)
    trimmed.load_state_dict(weights)
    return trimmed.to(model.dtype).eval()


def _trim_tokenizer(tokenizer: Tokenizer, state: dict[str, Any], new_ids: Mapping[int, int]) -> Tokenizer:
    vocabulary = state["model"]["vocab"]
    state["model"]["vocab"] = {token: new_ids[old] for token, old in vocabulary.items() if old in new_ids}
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if state["post_processor"] is not None:
        _renumber(state["post_processor"], new_ids)
    special = {name: tokenizer.special_tokens_map[name] for name in tokenizer.special_tokens_map}
    return PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        **special,
    )


def _renumber(processor: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Change the ids of the tokens that frame a text."""
    match processor["type"]:
        case "TemplateProcessing":
            for token in processor["special_tokens"].values():
                token["ids"] = [new_ids[old] for old in token["ids"]]
        case "BertProcessing" | "RobertaProcessing":
            for name in ("sep", "cls"):
                token, old = processor[name]
                processor[name] = [token, new_ids[old]]
        case other:
            raise ConfigurationError(
                f"a tokenizer with post-processor {other} can't be trimmed; leave out student.vocabulary"
            )
