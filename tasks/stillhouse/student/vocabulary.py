"""A smaller vocabulary for a student of one task: in small models, half of the weights are embeddings."""

import copy
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError
from stillhouse.models import is_causal, rebuild

logger = logging.getLogger(__name__)


def trim_vocabulary(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    token_ids: Sequence[Sequence[int]],
    size: int | None = None,
    *,
    texts: Sequence[str] = (),
) -> tuple[PreTrainedModel, Tokenizer]:
    """Keep the embeddings of the most frequent token ids, renumbered in their order, and a tokenizer to match.

    A text whose tokens are all kept becomes the same tokens, so the model says the same about it. Of other texts,
    words with a dropped token are split into smaller kept ones, or become unknown. Special tokens are always kept. A
    language model's output head is cut like its embeddings, so that it says the same of every kept token.

    WordPiece and WordLevel match the longest known piece, and what was longest still is when others are gone. BPE
    applies the first merge that it can, so a token is kept with all tokens that its merges pass through, and with the
    bytes: the merges of a text whose tokens are kept are still there, in their order, and no others come before them.
    Neither holds for the scores of Unigram.

    Args:
        model: A classifier or a language model; left as it is.
        tokenizer: The model's.
        token_ids: Of the training set's texts, of which the frequencies are taken.
        size: Number of ids to keep, special tokens included; with BPE, up to as many. None keeps what occurs in the
            texts.
        texts: On which it is checked that tokens which are kept are found again.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ConfigurationError: The tokenizer is of another kind, the size does not fit it, every token occurs, or a text
            of kept tokens becomes other ones.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = state["model"]["type"]
    if kind not in ("WordPiece", "WordLevel", "BPE"):
        raise ConfigurationError(f"the vocabulary of a {kind} tokenizer can't be trimmed; leave the trimming out")
    merges = _Merges(state) if kind == "BPE" else None
    new_ids = _kept(model, tokenizer, state, merges, token_ids, size)
    pad = tokenizer.pad_token_id
    if new_ids[pad] != pad and not is_causal(model):
        # Some encoders count positions from the padding id.
        raise ConfigurationError("the padding token does not come first in the vocabulary; leave the trimming out")
    trimmed = _trim_model(model, new_ids)
    small = _trim_tokenizer(tokenizer, state, new_ids)
    check_same_tokens(tokenizer, small, texts)
    logger.info("vocabulary of %d tokens, of %d", len(new_ids), len(tokenizer))
    return trimmed, small


def check_same_tokens(tokenizer: Tokenizer, small: Tokenizer, texts: Sequence[str]) -> int:
    """Compare what texts become before and after a trimming, where every token is kept.

    Args:
        tokenizer: The whole one.
        small: The trimmed one.
        texts: Any; those with a token that went are left out.

    Returns:
        The number of texts that were compared.

    Raises:
        ConfigurationError: One of them became other tokens.
    """
    if not texts:
        return 0
    names = {token: name for name, token in tokenizer.get_vocab().items()}
    vocabulary = small.get_vocab()
    before = [
        [vocabulary.get(names[token]) for token in ids] for ids in tokenizer(list(texts), verbose=False)["input_ids"]
    ]
    after = small(list(texts), verbose=False)["input_ids"]
    compared = [(old, new) for old, new in zip(before, after, strict=True) if None not in old]
    if changed := sum(old != new for old, new in compared):
        raise ConfigurationError(
            f"{changed} of {len(compared)} texts became other tokens with the trimmed tokenizer; leave the trimming out"
        )
    return len(compared)


class _Merges:
    """The merges of a BPE tokenizer, and the tokens through which they pass to make another one."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        rules = state["model"]
        if any(rules[name] for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout")):
            raise ConfigurationError(
                "a BPE tokenizer with dropout or marks within words can't be trimmed; leave the trimming out"
            )
        self.vocabulary: dict[str, int] = rules["vocab"]
        self._names = {token: name for name, token in self.vocabulary.items()}
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(rules["merges"])}
        self._byte_level = '"ByteLevel"' in json.dumps([state["pre_tokenizer"], state["normalizer"]])
        self._byte_fallback = rules["byte_fallback"]

    def bytes(self) -> set[int]:
        """Return the tokens of single bytes, of which every text can be made."""
        names = ByteLevel.alphabet() if self._byte_level else []
        if self._byte_fallback:
            names = [*names, *(f"<0x{byte:02X}>" for byte in range(256))]
        return {self.vocabulary[name] for name in names if name in self.vocabulary}

    def needed_by(self, token: int) -> set[int]:
        """Return a token and those through which its merges pass.

        Within a text, merges across a token's ends never happened, so those inside came as if it stood alone.
        """
        if token not in self._names:
            return {token}  # An added token, which no merge makes.
        symbols = list(self._names[token])
        needed = {token, *(self.vocabulary[symbol] for symbol in symbols if symbol in self.vocabulary)}
        while len(symbols) > 1:
            pairs = [(self._ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in self._ranks]
            if not pairs:
                break  # A token that no merges make: it is found whole, or never.
            _, at = min(pairs)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            needed.add(self.vocabulary[symbols[at]])
        return needed


def _kept(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    state: Mapping[str, Any],
    merges: _Merges | None,
    token_ids: Sequence[Sequence[int]],
    size: int | None,
) -> dict[int, int]:
    """Return the new id of each kept one, rising."""
    everything = set(tokenizer.get_vocab().values())
    always = _always_kept(model, tokenizer, state) & everything
    if merges is not None:
        always |= merges.bytes()
    counts = Counter(token for ids in token_ids for token in ids)
    if size is None:
        kept = always | counts.keys()
        if merges is not None:
            kept = kept.union(*map(merges.needed_by, kept))
        if len(kept) == len(everything):
            raise ConfigurationError(f"all {len(kept)} tokens occur in the training set; give a size or leave it out")
        return {old: new for new, old in enumerate(sorted(kept))}
    if not len(always) <= size < len(tokenizer):
        raise ConfigurationError(
            f"a vocabulary of {size} does not fit: give at least the {len(always)} special tokens "
            f"and less than the {len(tokenizer)} of the tokenizer"
        )
    kept = set(always)
    for token in sorted(everything - always, key=lambda token: (-counts[token], token)):
        needed = {token} if merges is None else merges.needed_by(token)
        if len(kept | needed) <= size:
            kept |= needed
        if len(kept) == size:
            break
    return {old: new for new, old in enumerate(sorted(kept))}


def _always_kept(model: PreTrainedModel, tokenizer: Tokenizer, state: Mapping[str, Any]) -> set[int]:
    always = {token["id"] for token in state["added_tokens"]} | set(tokenizer.all_special_ids)
    if (unknown := state["model"]["unk_token"]) is not None:
        always.add(state["model"]["vocab"][unknown])
    if model.get_output_embeddings() is not None:  # Its answers start and end with what the configs name.
        always |= {token for part in _configs(model) for _, ids in _special_ids(part) for token in ids}
    return always


def _configs(model: PreTrainedModel) -> list[Any]:
    """Return where a model writes down special ids."""
    return [part for part in (model.config, getattr(model, "generation_config", None)) if part is not None]


def _special_ids(config: Any) -> Iterable[tuple[str, list[int]]]:
    """Yield the fields that name special tokens, of which one may be several."""
    for name, value in vars(config).items():
        ids = value if isinstance(value, list) else [value]
        if name.endswith("_token_id") and all(isinstance(token, int) for token in ids):
            yield name, ids


def _renumber_config(config: Any, new_ids: Mapping[int, int]) -> None:
    for name, ids in list(_special_ids(config)):
        found = [new_ids.get(token, token) for token in ids]
        setattr(config, name, found if isinstance(getattr(config, name), list) else found[0])


def _trim_model(model: PreTrainedModel, new_ids: Mapping[int, int]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.vocab_size = len(new_ids)
    _renumber_config(config, new_ids)
    rows = [model.get_input_embeddings().weight]
    if (head := model.get_output_embeddings()) is not None:
        rows += [part for part in (head.weight, getattr(head, "bias", None)) if part is not None]
    kept_V = torch.tensor(list(new_ids), device=rows[0].device)
    weights = model.state_dict()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(parameter is part for part in rows):
            weights[name] = weights[name][kept_V]
    try:
        trimmed = rebuild(model, config, weights)
    except RuntimeError as error:
        raise ConfigurationError(
            f"a {type(model).__name__} has weights for each token outside its embeddings and its head; "
            "leave the trimming out"
        ) from error
    if trimmed.can_generate():
        _renumber_config(trimmed.generation_config, new_ids)
    return trimmed


def _trim_tokenizer(tokenizer: Tokenizer, state: dict[str, Any], new_ids: Mapping[int, int]) -> Tokenizer:
    rules = state["model"]
    rules["vocab"] = {token: new_ids[old] for token, old in rules["vocab"].items() if old in new_ids}
    if rules["type"] == "BPE":
        kept = rules["vocab"].keys()
        rules["merges"] = [pair for pair in rules["merges"] if {*pair, "".join(pair)} <= kept]
    for token in state["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    if state["post_processor"] is not None:
        _renumber(state["post_processor"], new_ids)
    special = {name: tokenizer.special_tokens_map[name] for name in tokenizer.special_tokens_map}
    small = PreTrainedTokenizerFast(
        tokenizer_object=Backend.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        **special,
    )
    small.chat_template = tokenizer.chat_template
    return small


def _renumber(processor: dict[str, Any], new_ids: Mapping[int, int]) -> None:
    """Change the ids of the tokens that frame a text."""
    match processor["type"]:
        case "ByteLevel":
            pass  # Moves offsets only.
        case "Sequence":
            for part in processor["processors"]:
                _renumber(part, new_ids)
        case "TemplateProcessing":
            for token in processor["special_tokens"].values():
                token["ids"] = [new_ids[old] for old in token["ids"]]
        case "BertProcessing" | "RobertaProcessing":
            for name in ("sep", "cls"):
                token, old = processor[name]
                processor[name] = [token, new_ids[old]]
        case other:
            raise ConfigurationError(
                f"a tokenizer with post-processor {other} can't be trimmed; leave the trimming out"
            )
