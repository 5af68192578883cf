"""Letting a causal language model continue prompts, with randomness that belongs to the prompt and not to its batch."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class PromptAnswers:
    """What a model answers to one prompt, as text without special tokens."""

    greedy: str
    """The most probable token at each step."""
    samples: tuple[str, ...]


def prompt_tokens(document: Document) -> Tokens:
    """Return what comes before the first token that carries loss: the prompt, in the chat template if there is one."""
    return document.ids_L[: int(document.targets_P[0]) + 1]


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
        on_progress: Told after each batch, in answers.

    Returns:
        N, in the order of the documents.

    Raises:
        ConfigurationError: The model has too few positions for a prompt and its answer.
        DataRejected: A logit is NaN or infinite.
    """
    model.eval()
    prompts = [prompt_tokens(document) for document in documents]
    _check_room(model, max(map(len, prompts), default=0), max_new_tokens)
    found: list[list[str]] = [[] for _ in documents]
    total = len(documents) * (1 + samples)
    done, started = 0, time.monotonic()
    # The first round is the greedy one.
    for number in range(1 + samples):
        for batch in length_buckets([len(prompt) for prompt in prompts], batch_size):
            draws_RS = np.stack([_draws(seed, documents[index].id, number, max_new_tokens) for index in batch])
            written = continue_prompts(
                model,
                tokenizer,
                [prompts[index] for index in batch],
                max_new_tokens=max_new_tokens,
                draws_RS=draws_RS if number else None,
                temperature=temperature,
            )
            texts = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for index, text in zip(batch, texts, strict=True):
                found[index].append(text)
            done += len(batch)
            if on_progress:
                on_progress(texts_progress(done, total, time.monotonic() - started))
    return [PromptAnswers(greedy=greedy, samples=tuple(drawn)) for greedy, *drawn in found]


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
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    width = max(map(len, prompts))
    # Padding goes to the left: the model continues at the right end.
    ids_BT = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.int64)
    mask_BT = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask_BT[row, width - len(prompt) :] = 1
    choice = _Choice(
        width=width, vocabulary=vocabulary_size(plain, tokenizer), draws_RS=draws_RS, temperature=temperature
    )
    ends = _end_tokens(plain, tokenizer)
    was_training, settings = plain.training, plain.generation_config
    plain.eval()
    # transformers falls back to the model's own settings wherever a call leaves one open.
    plain.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    try:
        with torch.no_grad():
            written_BT = plain.generate(
                input_ids=ids_BT.to(plain.device),
                attention_mask=mask_BT.to(plain.device),
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=stopping,
            )[:, width:]
    finally:
        plain.generation_config = settings
        plain.train(was_training)
    return [_until_end(row, ends) for row in written_BT.cpu().numpy().astype(np.int32)]


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Decides the next token of each row, so that greedy search only has to take it: a processor of logits."""

    width: int
    """Tokens of the padded prompts."""
    vocabulary: int
    draws_RS: npt.NDArray[np.float64] | None
    temperature: float

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return logits (R, V) that are -inf but for the next tokens, or for those that may be."""
        real_RV = scores[:, : self.vocabulary]
        if not bool(torch.isfinite(real_RV).all()):
            raise DataRejected("the model gave NaN or infinite logits while it wrote; check its weights")
        chosen_RV = torch.full_like(scores, -torch.inf)
        if self.draws_RS is None:
            chosen_RV[:, : self.vocabulary] = real_RV
            return chosen_RV
        # On the CPU: a deterministic sum along the vocabulary exists only there.
        probabilities_RV = (real_RV.cpu().double() / self.temperature).softmax(-1)
        sums_RV = probabilities_RV.cumsum(-1)
        draws_R = torch.from_numpy(self.draws_RS[:, input_ids.shape[1] - self.width])
        # The first sum above the draw: a token without probability is never the first.
        tokens_R1 = torch.searchsorted(sums_RV, draws_R[:, None] * sums_RV[:, -1:], right=True)
        return chosen_RV.scatter(1, tokens_R1.clamp(max=self.vocabulary - 1).to(scores.device), 0.0)


def _draws(seed: int, document_id: str, number: int, count: int) -> npt.NDArray[np.float64]:
    """Return ``count`` numbers in [0, 1) that belong to one sample of one document."""
    digest = hashlib.sha256(f"{seed}:{number}:{document_id}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4")).random(count)


def _check_room(model: PreTrainedModel, width: int, max_new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and width + max_new_tokens > limit:
        raise ConfigurationError(
            f"a prompt of {width} tokens and an answer of {max_new_tokens} exceed the model's {limit} positions; "
            "lower max_new_tokens, or give shorter prompts"
        )


def _end_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end an answer: chat models have one for turns, another one for texts."""
    own = model.generation_config.eos_token_id
    ends = [own] if isinstance(own, int) else own or []
    return sorted({*ends, tokenizer.eos_token_id})


def _until_end(tokens: Tokens, ends: Sequence[int]) -> Tokens:
    found = np.flatnonzero(np.isin(tokens, ends))
    return tokens[: int(found[0]) + 1] if len(found) else tokens
