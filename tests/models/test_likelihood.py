"""Likelihoods are those of the plain model, whatever the batch, and what can't be judged is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny_language import SPECIAL, WORDS, texts, tiny_causal, tiny_masked, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stillhouse.contract import ConfigurationError, DataRejected, Progress
from stillhouse.models import Document, documents_of, head_states, last_logits, likelihood, likelihoods
from stillhouse.models.documents import IGNORED, causal_documents
from stillhouse.models.heads import PROBE_TOKENS

MAX_TOKENS = 12


def made(*, masked: bool) -> tuple[Any, PreTrainedTokenizerFast, list[Document]]:
    """Return a model, its tokenizer and documents, some of them pieces of longer texts."""
    model, tokenizer = (tiny_masked() if masked else tiny_causal()), tiny_tokenizer(masked=masked)
    documents = documents_of(
        "masked-lm" if masked else "causal-lm", tokenizer, texts(), max_tokens=MAX_TOKENS, mask_share=0.3, seed=5
    )
    return model, tokenizer, documents


def padded(documents: list[Document]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, mask and labels (not shifted) of all documents as one batch."""
    width = max(len(document.ids_L) for document in documents)
    ids_BT = torch.zeros((len(documents), width), dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    labels_BT = torch.full_like(ids_BT, IGNORED)
    for row, document in enumerate(documents):
        length = len(document.ids_L)
        ids_BT[row, :length] = torch.from_numpy(document.ids_L.astype(np.int64))
        mask_BT[row, :length] = 1
        labels_BT[row, :length] = torch.from_numpy(document.labels_L.astype(np.int64))
    return ids_BT, mask_BT, labels_BT


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_loss_is_that_of_the_plain_model_on_one_whole_batch(masked: bool, batch_size: int) -> None:
    model, tokenizer, documents = made(masked=masked)
    ids_BT, mask_BT, labels_BT = padded(documents)
    # transformers shifts the labels of a causal model itself.
    shifted_BT = labels_BT if masked else torch.cat([torch.full_like(labels_BT[:, :1], IGNORED), labels_BT[:, :-1]], 1)
    with torch.no_grad():
        plain = model(input_ids=ids_BT, attention_mask=mask_BT, labels=shifted_BT)
    found = likelihoods(model, tokenizer, documents, batch_size=batch_size, max_tokens=MAX_TOKENS)
    assert found.losses_N.sum() / found.targets_N.sum() == pytest.approx(float(plain.loss), abs=1e-5)
    carries_BT = labels_BT != IGNORED
    assert found.targets_N.tolist() == carries_BT.sum(1).tolist()
    assert found.hits_N.tolist() == ((plain.logits.argmax(-1) == labels_BT) & carries_BT).sum(1).tolist()
    assert not found.truncated_N.any()
    assert (found.bytes_N is None) == masked


def test_head_never_sees_more_tokens_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, documents = made(masked=False)
    whole = likelihoods(model, tokenizer, documents, batch_size=8, max_tokens=MAX_TOKENS)
    monkeypatch.setattr(likelihood, "LOGITS_AT_A_TIME", 3 * len(tokenizer))
    sizes = []
    linear = torch.nn.functional.linear

    def watched(states: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        if len(weight) == len(tokenizer):
            sizes.append(states.numel() // states.shape[-1])
        return linear(states, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    parts = likelihoods(model, tokenizer, documents, batch_size=8, max_tokens=MAX_TOKENS)
    monkeypatch.undo()
    # The check of the head looks at 4 tokens; every other product at 3, or at none.
    assert sorted(set(sizes) - {PROBE_TOKENS}) == [0, 1, 2, 3]
    np.testing.assert_allclose(parts.losses_N, whole.losses_N, rtol=1e-6)
    assert parts.hits_N.tolist() == whole.hits_N.tolist()


def test_padding_of_the_vocabulary_gets_no_probability() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_causal(vocab_size=len(tokenizer) + 24)
    documents = documents_of("causal-lm", tokenizer, texts(), max_tokens=MAX_TOKENS, mask_share=0.15, seed=0)
    with torch.no_grad():
        # Loud enough to take all the mass, and every first place, if it counted.
        states = head_states(model, input_ids=padded(documents)[0])
        model.lm_head.weight[len(tokenizer) :] = 100 * states.mean((0, 1)) / states.mean((0, 1)).norm()
    loud = likelihoods(model, tokenizer, documents, batch_size=8, max_tokens=MAX_TOKENS)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = 0
    quiet = likelihoods(model, tokenizer, documents, batch_size=8, max_tokens=MAX_TOKENS)
    assert loud.losses_N.tolist() == quiet.losses_N.tolist()
    assert loud.hits_N.tolist() == quiet.hits_N.tolist()


def test_prompt_carries_neither_loss_nor_bytes() -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    (document,) = causal_documents(tokenizer, ["a"], ["good film"], ["the plot was bad"], max_tokens=MAX_TOKENS)
    found = likelihoods(model, tokenizer, [document], batch_size=1, max_tokens=MAX_TOKENS)
    with torch.no_grad():
        log_probabilities_TV = model(torch.from_numpy(document.ids_L)[None].long()).logits[0].log_softmax(-1)
    expected = -sum(float(log_probabilities_TV[at, int(document.ids_L[at + 1])]) for at in (3, 4, 5))
    assert found.targets_N.tolist() == [3]
    assert found.losses_N[0] == pytest.approx(expected, abs=1e-5)
    assert found.bytes_N is not None
    assert found.bytes_N.tolist() == [len(" good film")]


def test_answers_that_were_cut_are_flagged_and_only_their_read_bytes_count() -> None:
    model, tokenizer = tiny_causal(), tiny_tokenizer()
    documents = causal_documents(
        tokenizer, ["fits", "cut"], ["good film", "good film was it"], ["the plot", "the plot"], max_tokens=5
    )
    found = likelihoods(model, tokenizer, documents, batch_size=2, max_tokens=5)
    assert found.truncated_N.tolist() == [False, True]
    assert found.bytes_N is not None
    assert found.bytes_N.tolist() == [len(" good film"), len(" good film was")]


@pytest.mark.parametrize("text", ["plain words", "Größe, naïve — 東京 🙂", "  two  spaces "])
def test_bytes_are_those_of_the_text_after_its_first_token(text: str) -> None:
    backend = Tokenizer(
        models.BPE({"<end>": 0, **{c: i + 1 for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    model = tiny_causal(vocab_size=len(tokenizer))
    documents = causal_documents(tokenizer, ["a"], [text], None, max_tokens=60)
    found = likelihoods(model, tokenizer, documents, batch_size=1, max_tokens=60)
    assert found.bytes_N is not None
    # One token is one byte here, and the first one is not predicted.
    assert found.bytes_N.sum() == len(text.encode()) - 1
    assert found.targets_N.sum() == len(text.encode())


@pytest.mark.parametrize("masked", [False, True])
def test_losses_that_are_no_numbers_are_counted_and_refused(masked: bool) -> None:
    model, tokenizer, documents = made(masked=masked)
    word = int(documents[0].ids_L[1])
    with torch.no_grad():
        model.get_input_embeddings().weight[word] = torch.nan
    with pytest.raises(DataRejected, match=r"NaN or infinite logits for \d+ of \d+ texts"):
        likelihoods(model, tokenizer, documents, batch_size=4, max_tokens=MAX_TOKENS)


def test_model_with_too_few_positions_or_tokens_is_refused() -> None:
    model, tokenizer, documents = made(masked=False)
    with pytest.raises(ConfigurationError, match="65 and the model has 64"):
        likelihoods(model, tokenizer, documents, batch_size=4, max_tokens=65)
    small = tiny_causal(vocab_size=len(SPECIAL) + len(WORDS) - 9)
    with pytest.raises(ConfigurationError, match="no output for"):
        likelihoods(small, tokenizer, documents, batch_size=4, max_tokens=MAX_TOKENS)


def test_progress_counts_documents() -> None:
    model, tokenizer, documents = made(masked=False)
    told: list[Progress] = []
    likelihoods(model, tokenizer, documents[:9], batch_size=4, max_tokens=MAX_TOKENS, on_progress=told.append)
    assert [(progress.done, progress.total) for progress in told] == [(4, 9), (8, 9), (9, 9)]


@pytest.mark.parametrize("masked", [False, True])
def test_last_logits_are_those_of_each_text_alone(masked: bool) -> None:
    model, tokenizer, _ = made(masked=masked)
    rows: Dataset = texts(9)
    found_NV = last_logits(model, tokenizer, list(rows["text"]), batch_size=4, max_tokens=MAX_TOKENS)
    for text, logits_V in zip(rows["text"], found_NV, strict=True):
        inputs = tokenizer(
            text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt", return_token_type_ids=False
        )
        with torch.no_grad():
            np.testing.assert_allclose(logits_V, model(**inputs).logits[0, -1].numpy(), atol=1e-5)
