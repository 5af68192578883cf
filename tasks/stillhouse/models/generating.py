"""Letting a causal language model continue prompts, with randomness that belongs to the prompt and not to its batch."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, DataRejected, Progress
from stillhouse.models.documents import Document
from stillhouse.models.encoding import length_buckets
from stillhouse.models.heads import vocabulary_size
from stillhouse.models.predicting import texts_progress

Tokens = npt.NDArray[np.int32]

STRIDE = 16
"""Tokens after which rows that ended leave a batch."""

SHARED = 8
"""Fewest tokens at the start of all prompts of a batch that are read once for all of them."""

NUCLEUS = 256
"""Most probable tokens that are sorted first, since most often they suffice."""


@dataclass(frozen=True, kw_only=True)
class PromptAnswers:
    """What a model answers to one prompt, as text without special tokens."""

    greedy: str
    """The most probable token at each step."""
    samples: tuple[str, ...]


def prompt_tokens(document: Document) -> Tokens:
    """Return what comes before the first token that carries loss: the prompt, in the chat template if there is one."""
    return document.ids_L[: int(document.targets_P[0]) + 1]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn from a distribution; without it the most probable one is taken."""

    seed: int
    temperature: float
    top_p: float = 1.0
    """Draw from the fewest tokens whose probabilities reach this sum (nucleus, Holtzman et al. 2020)."""


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    max_new_tokens: int,
    samples: int,
    temperature: float,
    seed: int,
    batch_size: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[PromptAnswers]:
    """Answer the prompts of documents, once greedily and then ``samples`` times at random.

    A sample depends on the seed, the document's id and the sample's number: the same in any batch, but for a rounding
    that turns a close choice. Prompts of similar length share a batch.

    Args:
        model: Causal; put into evaluation mode.
        tokenizer: The model's, and the one that the documents were made with.
        documents: N, with prompts.
        max_new_tokens: Bound of an answer.
        samples: Random answers per prompt.
        temperature: Of the random answers.
        seed: Of the random answers.
        batch_size: Prompts per batch.
        on_progress: Told as answers end.

    Returns:
        N, in the order of the documents.

    Raises:
        ConfigurationError: The model has too few positions for a prompt and its answer.
        DataRejected: A logit is NaN or infinite.
    """
    model.eval()
    prompts = [prompt_tokens(document) for document in documents]
    found: list[list[str]] = [[""] * (1 + samples) for _ in documents]
    total = len(documents) * (1 + samples)
    done, started = 0, time.monotonic()
    # The first round is the greedy one.
    for number in range(1 + samples):
        for index, tokens in stream_continuations(
            model,
            tokenizer,
            prompts,
            keys=[f"{number}:{document.id}" for document in documents],
            max_new_tokens=max_new_tokens,
            sampling=Sampling(seed=seed, temperature=temperature) if number else None,
            batch_size=batch_size,
        ):
            found[index][number] = decode_answer(tokenizer, tokens)
            done += 1
            if on_progress:
                on_progress(texts_progress(done, total, time.monotonic() - started))
    return [PromptAnswers(greedy=greedy, samples=tuple(drawn)) for greedy, *drawn in found]


def stream_continuations(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Tokens],
    *,
    keys: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling | None,
    batch_size: int,
) -> Iterator[tuple[int, Tokens]]:
    """Continue any number of prompts, those of similar length together, and hand each out soon after it ended.

    Args:
        model: Causal.
        tokenizer: The model's.
        prompts: Token ids, at least one each.
        keys: What the randomness of each prompt belongs to, besides the seed.
        max_new_tokens: Bound of each continuation.
        sampling: How tokens are drawn; None takes the most probable ones.
        batch_size: Prompts at a time. Rows that ended leave their batch, so that a few long answers cost no more than
            themselves.

    Yields:
        Index of the prompt, and the tokens up to the first end-of-sequence token, that one included.

    Raises:
        ConfigurationError: The model has too few positions for a prompt and its answer.
        DataRejected: A logit is NaN or infinite.
    """
    _check_room(model, max(map(len, prompts), default=0), max_new_tokens)
    for batch in length_buckets([len(prompt) for prompt in prompts], batch_size):
        choice = _Choice(
            draws_RS=np.stack([_draws(sampling.seed, keys[index], max_new_tokens) for index in batch])
            if sampling
            else None,
            temperature=sampling.temperature if sampling else 1.0,
            top_p=sampling.top_p if sampling else 1.0,
        )
        chosen = [prompts[index] for index in batch]
        for row, tokens in _stream(model, tokenizer, chosen, choice, max_new_tokens):
            yield batch[row], tokens


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    draws_RS: npt.NDArray[np.float64] | None,
    temperature: float = 1.0,
    stopping: StoppingCriteriaList | None = None,
) -> list[Tokens]:
    """Continue R prompts together. The model is left in the mode it was in, and is not trained by this.

    What a model folder says about generation (penalties, top-k …) does not count, its end-of-sequence tokens apart.
    Nor do rows of the head beyond the tokenizer's ids, which are padding.

    Args:
        model: Causal.
        tokenizer: The model's.
        prompts: Token ids, at least one each.
        max_new_tokens: S, the bound of each continuation.
        draws_RS: A number in [0, 1) for each token that may be drawn: it falls to a token of the cumulative
            distribution. None takes the most probable token instead.
        temperature: Of the distribution that is drawn from.
        stopping: What else ends all continuations, besides their end-of-sequence tokens and the bound.

    Returns:
        Token ids, each up to its first end-of-sequence token, that one included.

    Raises:
        DataRejected: A logit is NaN or infinite.
    """
    choice = _Choice(draws_RS=draws_RS, temperature=temperature)
    start = _Batch.of(prompts, tokenizer.pad_token_id)
    batch = _extend(model, tokenizer, start, choice, max_new_tokens, stopping)
    return batch.written(end_tokens(model, tokenizer))


def end_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end an answer: chat models have one for turns, another one for texts."""
    own = _plain(model).generation_config.eos_token_id
    ends = [own] if isinstance(own, int) else own or []
    return sorted({*ends, tokenizer.eos_token_id})


def decode_answer(tokenizer: Tokenizer, tokens: Tokens) -> str:
    """Return tokens as text without special tokens."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """B rows on their way: prompt and what was written so far."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    width: int
    """Tokens of the padded prompts."""
    cache: Any = None
    """What transformers keeps of all tokens but the last, if anything."""

    @classmethod
    def of(cls, prompts: Sequence[Tokens], pad_token_id: int, *, shared: int = 0, cache: Any = None) -> "_Batch":
        """Pad left of the end, since the model continues there, and right of what all prompts start with."""
        width = max(map(len, prompts))
        ids_BT = torch.full((len(prompts), width), pad_token_id, dtype=torch.int64)
        mask_BT = torch.zeros((len(prompts), width), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens, end = torch.from_numpy(prompt.astype(np.int64)), width - len(prompt) + shared
            ids_BT[row, :shared], ids_BT[row, end:] = tokens[:shared], tokens[shared:]
            mask_BT[row, :shared], mask_BT[row, end:] = 1, 1
        return cls(ids_BT=ids_BT, mask_BT=mask_BT, width=width, cache=cache)

    def written(self, ends: Sequence[int]) -> list[Tokens]:
        """Return the new tokens of each row, up to its first end."""
        return [_until_end(row, ends) for row in self.ids_BT[:, self.width :].cpu().numpy().astype(np.int32)]

    def keep(self, rows: npt.NDArray[np.int64]) -> "_Batch":
        """Return the batch with only these rows. The cache is shared with this one, which must not be used again."""
        if self.cache is not None and len(rows) < len(self.ids_BT):
            self.cache.batch_select_indices(torch.from_numpy(rows).to(self.ids_BT.device))
        return replace(self, ids_BT=self.ids_BT[rows], mask_BT=self.mask_BT[rows])


def _stream(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Tokens], choice: "_Choice", max_new_tokens: int
) -> Iterator[tuple[int, Tokens]]:
    ends = end_tokens(model, tokenizer)
    shared, cache = _read_shared(model, prompts)
    batch = _Batch.of(prompts, tokenizer.pad_token_id, shared=shared, cache=cache)
    rows_B = np.arange(len(prompts))
    for done in range(0, max_new_tokens, STRIDE):
        left = max_new_tokens - done
        batch = _extend(model, tokenizer, batch, choice, min(STRIDE, left))
        tails = batch.written(ends)
        ended_B = np.asarray([tail[-1] in ends or left <= STRIDE for tail in tails])
        yield from ((int(rows_B[place]), tails[place]) for place in np.flatnonzero(ended_B))
        if ended_B.all():
            return
        going = np.flatnonzero(~ended_B)
        batch, rows_B, choice = batch.keep(going), rows_B[going], choice.keep(going)


def _read_shared(model: PreTrainedModel, prompts: Sequence[Tokens]) -> tuple[int, Any]:
    """Let the model read what all prompts start with, such as a system message, once.

    Returns:
        How many tokens that are, and what transformers keeps of them for each prompt; 0 and None if it is too few.
    """
    shortest = min(map(len, prompts))
    same_T = (np.stack([prompt[:shortest] for prompt in prompts]) == prompts[0][:shortest]).all(axis=0)
    # At least the last token of each prompt is read with the others.
    shared = min(int(np.cumprod(same_T).sum()), shortest - 1)
    if shared < SHARED or len(prompts) == 1:
        return 0, None
    plain = _plain(model)
    was_training = plain.training
    plain.eval()
    try:
        with torch.no_grad():
            ids_BT = torch.from_numpy(prompts[0][None, :shared].astype(np.int64)).to(plain.device)
            cache = plain(input_ids=ids_BT, use_cache=True).get("past_key_values")
    finally:
        plain.train(was_training)
    if cache is None:
        return 0, None
    cache.batch_repeat_interleave(len(prompts))
    return shared, cache


def _extend(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    batch: _Batch,
    choice: "_Choice",
    count: int,
    stopping: StoppingCriteriaList | None = None,
) -> _Batch:
    """Write up to ``count`` tokens to each row; a row that ended is filled up with padding."""
    plain = _plain(model)
    was_training, settings = plain.training, plain.generation_config
    plain.eval()
    # transformers falls back to the model's own settings wherever a call leaves one open.
    plain.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=end_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
    )
    choose = partial(choice, width=batch.width, vocabulary=vocabulary_size(plain, tokenizer))
    try:
        with torch.no_grad():
            found = plain.generate(
                input_ids=batch.ids_BT.to(plain.device),
                attention_mask=batch.mask_BT.to(plain.device),
                past_key_values=batch.cache,
                logits_processor=LogitsProcessorList([choose]),
                stopping_criteria=stopping,
            )
    finally:
        plain.generation_config = settings
        plain.train(was_training)
    ids_BT = found.sequences.cpu()
    mask_BT = torch.nn.functional.pad(batch.mask_BT, (0, ids_BT.shape[1] - batch.mask_BT.shape[1]), value=1)
    return replace(batch, ids_BT=ids_BT, mask_BT=mask_BT, cache=found.get("past_key_values"))


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Decides the next token of each row, so that greedy search only has to take it: a processor of logits."""

    draws_RS: npt.NDArray[np.float64] | None
    temperature: float
    top_p: float = 1.0

    def keep(self, rows: npt.NDArray[np.int64]) -> "_Choice":
        """Return what decides for these rows only."""
        return self if self.draws_RS is None else replace(self, draws_RS=self.draws_RS[rows])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, *, width: int, vocabulary: int) -> torch.Tensor:
        """Return logits (R, V) that are -inf but for the next tokens, or for those that may be."""
        real_RV = scores[:, :vocabulary]
        if not bool(torch.isfinite(real_RV).all()):
            raise DataRejected("the model gave NaN or infinite logits while it wrote; check its weights")
        chosen_RV = torch.full_like(scores, -torch.inf)
        if self.draws_RS is None:
            chosen_RV[:, :vocabulary] = real_RV
            return chosen_RV
        # On the CPU: a deterministic sum along the vocabulary exists only there.
        probabilities_RV = _nucleus((real_RV.cpu().double() / self.temperature).softmax(-1), self.top_p)
        sums_RV = probabilities_RV.cumsum(-1)
        draws_R = torch.from_numpy(self.draws_RS[:, input_ids.shape[1] - width])
        # The first sum above the draw: a token without probability is never the first.
        tokens_R1 = torch.searchsorted(sums_RV, draws_R[:, None] * sums_RV[:, -1:], right=True)
        return chosen_RV.scatter(1, tokens_R1.clamp(max=vocabulary - 1).to(scores.device), 0.0)


def _nucleus(probabilities_RV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the probabilities without those of tokens beyond the most probable ones that sum up to ``top_p``."""
    if top_p == 1:
        return probabilities_RV
    count, size = NUCLEUS, probabilities_RV.shape[-1]
    while True:
        largest_RK = probabilities_RV.topk(min(count, size)).values
        sums_RK = largest_RK.cumsum(-1)
        if count >= size or bool((sums_RK[:, -1] >= top_p).all()):
            break
        count *= 8
    last_R1 = (sums_RK < top_p).sum(-1, keepdim=True).clamp(max=largest_RK.shape[-1] - 1)
    return probabilities_RV.where(probabilities_RV >= largest_RK.gather(1, last_R1), 0.0)


def _draws(seed: int, key: str, count: int) -> npt.NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1) that belong to one key."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4")).random(count)


def _plain(model: PreTrainedModel) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _check_room(model: PreTrainedModel, width: int, max_new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and width + max_new_tokens > limit:
        raise ConfigurationError(
            f"a prompt of {width} tokens and an answer of {max_new_tokens} exceed the model's {limit} positions; "
            "lower max_new_tokens, or give shorter prompts"
        )


def _until_end(tokens: Tokens, ends: Sequence[int]) -> Tokens:
    found = np.flatnonzero(np.isin(tokens, ends))
    return tokens[: int(found[0]) + 1] if len(found) else tokens
