"""What a language model reads, and what it should say at which token: the same in every stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.recipe import Task

IGNORED = -100
"""Label of a token whose output carries no loss."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A piece of text as L tokens."""

    id: str
    """The row's id, and ``#1``, ``#2`` and so on for the further pieces of a long text."""
    ids_L: npt.NDArray[np.int32]
    """What the model is given."""
    labels_L: npt.NDArray[np.int32]
    """What its output at each token should be, or `IGNORED`. Nobody shifts these any more: a causal model's label at
    a token is the token after it."""

    @property
    def targets_P(self) -> npt.NDArray[np.int64]:
        """Positions that carry loss, rising."""
        return np.flatnonzero(self.labels_L != IGNORED)


def causal_documents(
    tokenizer: Tokenizer, ids: Sequence[str], texts: Sequence[str], prompts: Sequence[str] | None, *, max_tokens: int
) -> list[Document]:
    """Prepare texts for a model that predicts the next token.

    A text ends with the end-of-sequence token. With a prompt it is the answer to it, in the tokenizer's chat template
    if it has one, and the prompt's tokens carry no loss; a prompt that leaves no room for its answer is refused. Texts
    longer than ``max_tokens`` are cut into pieces, prompted ones are cut short.

    Raises:
        ConfigurationError: The tokenizer has no end-of-sequence token.
        DataRejected: A prompt is too long.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ConfigurationError("the tokenizer has no end-of-sequence token; set eos_token")
    documents = []
    if prompts is None:
        plain = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        start = [] if tokenizer.bos_token_id in (None, end) else [tokenizer.bos_token_id]
        for row_id, row in zip(ids, plain, strict=True):
            documents += _pieces(row_id, [*start, *row, end], max_tokens)
        return documents
    for row_id, prompt, text in zip(ids, prompts, texts, strict=True):
        question, answer = _dialogue(tokenizer, prompt, text)
        if len(question) >= max_tokens:
            raise DataRejected(f"row {row_id} has a prompt of {len(question)} tokens; raise training.max_tokens")
        tokens = [*question, *answer][:max_tokens]
        documents.append(_causal(row_id, tokens, prompt_tokens=len(question)))
    return documents


def masked_documents(
    tokenizer: Tokenizer, ids: Sequence[str], texts: Sequence[str], *, max_tokens: int, mask_share: float, seed: int
) -> list[Document]:
    """Prepare texts for a model that predicts hidden tokens (BERT, Devlin et al. 2019, section 3.1).

    Of the chosen tokens 80% become the mask token, 10% a random one and 10% stay. The choice depends on the seed and
    the document's id and place alone, so that teacher and student are asked the same. Texts longer than ``max_tokens``
    are cut into pieces; each is framed by the tokenizer's special tokens and has at least one hidden token.

    Raises:
        ConfigurationError: The tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigurationError("the tokenizer has no mask token; use one of a masked language model")
    before, after = _frame(tokenizer)
    room = max_tokens - len(before) - len(after)
    plain = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    ordinary = np.asarray([token for token in range(len(tokenizer)) if token not in special], dtype=np.int32)
    documents = []
    for row_id, row in zip(ids, plain, strict=True):
        for name, piece in _named_pieces(row_id, row, room):
            tokens_L = np.asarray([*before, *piece, *after], dtype=np.int32)
            documents.append(_masked(name, tokens_L, special, ordinary, tokenizer.mask_token_id, mask_share, seed))
    return documents


def documents_of(
    task: Task, tokenizer: Tokenizer, rows: Any, *, max_tokens: int, mask_share: float, seed: int
) -> list[Document]:
    """Prepare the rows of a frozen set for a language modelling task.

    Args:
        task: ``causal-lm`` or ``masked-lm``.
        tokenizer: Of teacher and student.
        rows: A data set with columns ``id``, ``text`` and maybe ``prompt``.
        max_tokens: Of a piece.
        mask_share: See `masked_documents`.
        seed: See `masked_documents`.

    Raises:
        ConfigurationError: The tokenizer is unfit for the task.
        DataRejected: There is nothing to learn, or a prompt is too long.
    """
    ids, texts = list(rows["id"]), list(rows["text"])
    if task == "masked-lm":
        documents = masked_documents(tokenizer, ids, texts, max_tokens=max_tokens, mask_share=mask_share, seed=seed)
    else:
        prompts = list(rows["prompt"]) if "prompt" in rows.column_names else None
        documents = causal_documents(tokenizer, ids, texts, prompts, max_tokens=max_tokens)
    documents = [document for document in documents if len(document.targets_P)]
    if not documents:
        raise DataRejected("no text of the set has a token to predict; check the data section of the recipe")
    return documents


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens before and after a text."""
    plain, framed = (tokenizer("a", add_special_tokens=framed, verbose=False)["input_ids"] for framed in (False, True))
    start = next(place for place in range(len(framed)) if framed[place : place + len(plain)] == plain)
    return framed[:start], framed[start + len(plain) :]


def question_tokens(tokenizer: Tokenizer, prompt: str, system: str | None = None) -> list[int]:
    """Return the tokens of a question: in the chat template, after the system message; or plain, after its text."""
    if tokenizer.chat_template is None:
        plain = prompt if system is None else f"{system}\n\n{prompt}"
        return list(tokenizer(plain, add_special_tokens=True, verbose=False)["input_ids"])
    return list(tokenizer(_rendered(tokenizer, prompt, system), add_special_tokens=False, verbose=False)["input_ids"])


def _rendered(tokenizer: Tokenizer, prompt: str, system: str | None = None) -> str:
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _dialogue(tokenizer: Tokenizer, prompt: str, text: str) -> tuple[list[int], list[int]]:
    """Return the tokens of question and answer, the end-of-sequence token included."""
    question = question_tokens(tokenizer, prompt)
    if tokenizer.chat_template is None:
        answer = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return question, [*answer, tokenizer.eos_token_id]
    messages = [{"role": "user", "content": prompt}]
    rendered = _rendered(tokenizer, prompt)
    whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": text}], tokenize=False)
    if not whole.startswith(rendered):
        raise ConfigurationError("the chat template does not put an answer after its prompt; use a plain tokenizer")
    answer = tokenizer(whole.removeprefix(rendered), add_special_tokens=False, verbose=False)["input_ids"]
    # Templates end a turn in their own way; what follows the end token is layout, and never learned.
    if tokenizer.eos_token_id in answer:
        answer = answer[: answer.index(tokenizer.eos_token_id) + 1]
    return question, answer


def _named_pieces(row_id: str, tokens: Sequence[int], length: int) -> Iterator[tuple[str, Sequence[int]]]:
    for number, start in enumerate(range(0, len(tokens), length)):
        yield (f"{row_id}#{number}" if number else row_id), tokens[start : start + length]


def _pieces(row_id: str, tokens: Sequence[int], length: int) -> list[Document]:
    return [_causal(name, piece, prompt_tokens=0) for name, piece in _named_pieces(row_id, tokens, length)]


def _causal(name: str, tokens: Sequence[int], *, prompt_tokens: int) -> Document:
    ids_L = np.asarray(tokens, dtype=np.int32)
    labels_L = np.append(ids_L[1:], IGNORED).astype(np.int32)
    labels_L[: max(prompt_tokens - 1, 0)] = IGNORED
    return Document(id=name, ids_L=ids_L, labels_L=labels_L)


def _masked(
    name: str,
    tokens_L: npt.NDArray[np.int32],
    special: set[int],
    ordinary: npt.NDArray[np.int32],
    mask: int,
    share: float,
    seed: int,
) -> Document:
    generator = np.random.default_rng([seed, *name.encode()])
    candidates = np.asarray([place for place, token in enumerate(tokens_L) if int(token) not in special])
    labels_L = np.full(len(tokens_L), IGNORED, dtype=np.int32)
    ids_L = tokens_L.copy()
    if len(candidates):
        chosen = generator.permutation(candidates)[: max(1, round(share * len(candidates)))]
        labels_L[chosen] = tokens_L[chosen]
        fate = generator.random(len(chosen))
        ids_L[chosen[fate < 0.8]] = mask
        replaced = chosen[(fate >= 0.8) & (fate < 0.9)]
        ids_L[replaced] = generator.choice(ordinary, size=len(replaced))
    return Document(id=name, ids_L=ids_L, labels_L=labels_L)
