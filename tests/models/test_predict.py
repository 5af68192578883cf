from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import LABELS

from stillhouse.contract import ConfigurationError, DataRejected, Progress
from stillhouse.models import encode, length_buckets, load_model, load_tokenizer, pad_batch, predict

TEXTS = ["the film was good", "bad", "a " * 30 + "great plot", "story of this", "", "dull and poor and grim and cold"]


def test_predictions_are_in_order_and_those_of_the_model_alone(folder: Path) -> None:
    model, tokenizer = load_model(folder, task="text-classification", labels=LABELS), load_tokenizer(folder)
    model.train()
    told: list[Progress] = []
    found = predict(model, tokenizer, TEXTS, batch_size=4, max_tokens=16, hidden=True, on_progress=told.append)
    assert not model.training
    assert found.logits_NC.dtype == np.float32
    assert found.truncated_N.tolist() == [False, False, True, False, False, False]
    assert found.hidden is not None
    for text, logits_C, states_TD, ids in zip(TEXTS, found.logits_NC, found.hidden, found.token_ids, strict=True):
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            alone = model(**inputs, output_hidden_states=True)
            last_TD = model.bert(**inputs).last_hidden_state[0].numpy()
        assert ids == inputs["input_ids"][0].tolist()
        np.testing.assert_allclose(logits_C, alone.logits[0].numpy(), atol=1e-5)
        assert states_TD.dtype == np.float16
        np.testing.assert_allclose(states_TD.astype(np.float32), last_TD, atol=4e-3)
    assert [progress.done for progress in told] == [4, 6]


def test_batch_size_changes_no_prediction(folder: Path) -> None:
    model, tokenizer = load_model(folder, task="text-classification", labels=LABELS), load_tokenizer(folder)
    one, all_ = (predict(model, tokenizer, TEXTS, batch_size=size, max_tokens=16) for size in (1, 6))
    np.testing.assert_allclose(one.logits_NC, all_.logits_NC, atol=1e-5)
    assert one.hidden is None


def test_no_texts_give_no_predictions(folder: Path) -> None:
    found = predict(
        load_model(folder, task="text-classification", labels=LABELS),
        load_tokenizer(folder),
        [],
        batch_size=4,
        max_tokens=16,
    )
    assert found.logits_NC.shape == (0, 2)


def test_nan_logits_are_counted_and_refused(folder: Path) -> None:
    model, tokenizer = load_model(folder, task="text-classification", labels=LABELS), load_tokenizer(folder)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("film")] = torch.nan
    with pytest.raises(DataRejected, match="NaN or infinite logits for 1 of 6 texts"):
        predict(model, tokenizer, TEXTS, batch_size=4, max_tokens=16)


def test_more_tokens_than_positions_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="65 and the model has 64"):
        predict(
            load_model(folder, task="text-classification", labels=LABELS),
            load_tokenizer(folder),
            TEXTS,
            batch_size=4,
            max_tokens=65,
        )


def test_cut_texts_keep_their_special_tokens(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    found = encode(tokenizer, TEXTS, 8)
    assert found.truncated == [False, False, True, False, False, True]
    assert max(map(len, found.ids)) == 8
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in found.ids)


@given(lengths=st.lists(st.integers(1, 99), max_size=200), batch_size=st.integers(1, 50))
def test_buckets_hold_every_index_once_longest_first(lengths: list[int], batch_size: int) -> None:
    buckets = length_buckets(lengths, batch_size)
    order = [index for bucket in buckets for index in bucket]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
    assert all(len(bucket) == batch_size for bucket in buckets[:-1])


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=8))
def test_padding_hides_nothing_and_adds_nothing(sequences: list[list[int]]) -> None:
    ids_BT, mask_BT = pad_batch(sequences, 0)
    assert ids_BT.shape == mask_BT.shape == (len(sequences), max(map(len, sequences)))
    assert [ids_T[mask_T.bool()].tolist() for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)] == sequences
    assert (ids_BT * (1 - mask_BT)).sum() == 0
