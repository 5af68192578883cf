"""What a language model says: how likely it finds documents, and which token it expects at the end of a text."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import ConfigurationError, DataRejected, Progress
from stillhouse.models.documents import Document
from stillhouse.models.encoding import check_max_tokens, encode, length_buckets, pad_batch
from stillhouse.models.heads import OutputHead, check_head, head_states, output_head, vocabulary_size
from stillhouse.models.layers import is_causal
from stillhouse.models.predicting import texts_progress

LOGITS_AT_A_TIME = 1 << 23
"""32 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """What a language model makes of N documents, in their order."""

    targets_N: npt.NDArray[np.int64]
    """Tokens that carry loss."""
    hits_N: npt.NDArray[np.int64]
    """Those of them that the model finds the most probable."""
    losses_N: npt.NDArray[np.float64]
    """Sum of their negative log-likelihoods, in nats."""
    bytes_N: npt.NDArray[np.int64] | None
    """UTF-8 bytes that these tokens stand for, special tokens none; exact but for a character that the border between
    two pieces cuts. None for a masked model, which is asked for too few tokens to code a text."""
    truncated_N: npt.NDArray[np.bool_]
    """Whether an answer to a prompt was cut. A text without a prompt goes on in the next document instead."""


def likelihoods(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    batch_size: int,
    max_tokens: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> Likelihoods:
    """Score documents in batches of similar length, without dropout and without gradients.

    The body runs once over each batch, the head over a few tokens at a time. Rows of the head beyond the tokenizer's
    ids are padding and get no probability.

    Args:
        model: Causal or masked; put into evaluation mode.
        tokenizer: The model's, and the one that the documents were made with.
        documents: See `stillhouse.models.documents_of`; each has a token that carries loss.
        batch_size: Documents per forward pass.
        max_tokens: Of a document, as they were made.
        on_progress: Told after each batch, in documents.

    Raises:
        DataRejected: A loss is NaN or infinite.
        ConfigurationError: The model has fewer positions than ``max_tokens``, no outputs for some of the tokenizer's
            ids, or logits that are not what its head makes of its states.
    """
    check_max_tokens(model, max_tokens)
    check_head(model.eval())
    causal, vocabulary = is_causal(model), vocabulary_size(model, tokenizer)
    if any(int(document.ids_L.max()) >= vocabulary for document in documents):
        raise ConfigurationError(
            f"the tokenizer gives ids that the model, which knows {vocabulary}, has no output for; give the model's own"
        )
    targets_N = np.asarray([len(document.targets_P) for document in documents], dtype=np.int64)
    hits_N = np.zeros(len(documents), dtype=np.int64)
    losses_N = np.zeros(len(documents))
    done, started = 0, time.monotonic()
    with torch.inference_mode():
        for batch in length_buckets([len(document.ids_L) for document in documents], batch_size):
            losses_P, hits_P = _judge(model, [documents[index] for index in batch], vocabulary)
            places_P = np.repeat(np.arange(len(batch)), targets_N[batch])
            losses_N[batch] = np.bincount(places_P, weights=losses_P, minlength=len(batch))
            hits_N[batch] = np.bincount(places_P, weights=hits_P, minlength=len(batch)).astype(np.int64)
            done += len(batch)
            if on_progress:
                on_progress(texts_progress(done, len(documents), time.monotonic() - started))
    if bad := int((~np.isfinite(losses_N)).sum()):
        raise DataRejected(
            f"the model gave NaN or infinite logits for {bad} of {len(documents)} texts; check its weights"
        )
    return Likelihoods(
        targets_N=targets_N,
        hits_N=hits_N,
        losses_N=losses_N,
        bytes_N=_target_bytes(tokenizer, documents) if causal else None,
        truncated_N=np.asarray([causal and _is_cut(d, tokenizer, max_tokens) for d in documents], dtype=np.bool_),
    )


def last_logits(
    model: PreTrainedModel, tokenizer: Tokenizer, texts: Sequence[str], *, batch_size: int, max_tokens: int
) -> npt.NDArray[np.float32]:
    """Read texts and return what the model says at the last token of each: a causal model's next token.

    Args:
        model: Causal or masked; put into evaluation mode.
        tokenizer: The model's.
        texts: N, of at least one token each.
        batch_size: Texts per forward pass.
        max_tokens: Longer texts are cut, special tokens included.

    Returns:
        Logits (N, V), without the head's padding.

    Raises:
        DataRejected: A logit is NaN or infinite.
        ConfigurationError: The model has fewer positions than ``max_tokens``.
    """
    check_max_tokens(model, max_tokens)
    ids = encode(tokenizer, texts, max_tokens).ids
    vocabulary = vocabulary_size(model.eval(), tokenizer)
    logits_NV = np.empty((len(ids), vocabulary), dtype=np.float32)
    with torch.inference_mode():
        for batch in length_buckets([len(row) for row in ids], batch_size):
            states_BTD = _states(model, [ids[index] for index in batch])
            states_BD = states_BTD[range(len(batch)), [len(ids[index]) - 1 for index in batch]]
            logits_NV[batch] = _logits(output_head(model), states_BD, vocabulary).cpu().numpy()
    if bad := int((~np.isfinite(logits_NV)).any(axis=1).sum()):
        raise DataRejected(f"the model gave NaN or infinite logits for {bad} of {len(ids)} texts; check its weights")
    return logits_NV


def _judge(
    model: PreTrainedModel, documents: Sequence[Document], vocabulary: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return loss and hit of each target of a batch, document after document."""
    states_BTD = _states(model, [document.ids_L.tolist() for document in documents])
    states_PD = torch.cat([states_BTD[row, document.targets_P] for row, document in enumerate(documents)])
    labels = np.concatenate([document.labels_L[document.targets_P] for document in documents]).astype(np.int64)
    labels_P = torch.from_numpy(labels).to(model.device)
    head = output_head(model)
    losses_P, hits_P = np.empty(len(labels_P)), np.empty(len(labels_P), dtype=np.bool_)
    size = max(1, LOGITS_AT_A_TIME // vocabulary)
    for start in range(0, len(labels_P), size):
        rows = slice(start, start + size)
        logits_PV = _logits(head, states_PD[rows], vocabulary)
        losses_P[rows] = torch.nn.functional.cross_entropy(logits_PV, labels_P[rows], reduction="none").cpu().numpy()
        hits_P[rows] = (logits_PV.argmax(-1) == labels_P[rows]).cpu().numpy()
    return losses_P, hits_P


def _states(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return what the head is given for a batch of sequences, padded on the right."""
    ids_BT, mask_BT = pad_batch(ids, 0)
    inputs = {"input_ids": ids_BT.to(model.device)}
    # A causal model's tokens never see the padding after them, and without a mask it runs its fastest kernel.
    if not is_causal(model):
        inputs["attention_mask"] = mask_BT.to(model.device)
    return head_states(model, **inputs)


def _logits(head: OutputHead, states_PD: torch.Tensor, vocabulary: int) -> torch.Tensor:
    bias_V = None if head.bias_V is None else head.bias_V[:vocabulary]
    return torch.nn.functional.linear(states_PD, head.weight_VD[:vocabulary], bias_V).float()


def _target_bytes(tokenizer: Tokenizer, documents: Sequence[Document]) -> npt.NDArray[np.int64]:
    """Return the bytes by which all of a causal document's text is longer than what comes before its first target."""
    whole = _num_bytes(tokenizer, [document.ids_L for document in documents])
    before = _num_bytes(tokenizer, [document.ids_L[: document.targets_P[0] + 1] for document in documents])
    differences_N: npt.NDArray[np.int64] = np.maximum(whole - before, 0)
    return differences_N


def _num_bytes(tokenizer: Tokenizer, ids: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int64]:
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return np.asarray([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.int64)


def _is_cut(document: Document, tokenizer: Tokenizer, max_tokens: int) -> bool:
    """Tell whether a causal document with a prompt, whose tokens carry no loss, fills its room and has no end."""
    full = len(document.ids_L) == max_tokens and int(document.ids_L[-1]) != tokenizer.eos_token_id
    has_prompt = int(document.targets_P[0]) > 0
    return full and has_prompt
