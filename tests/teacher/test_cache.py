import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny import LABELS, write_teacher
from tiny_training import tiny_identity, tiny_rows, write_tiny_cache

from stillhouse.contract import DataRejected, StageBug
from stillhouse.models import Predictions, encode, load_model, load_tokenizer, predict
from stillhouse.teacher import TeacherCache, check_canary, shard_indices, write_cache

NUM_SHARDS = 3


class Scored:
    """A training set scored by a tiny teacher into three shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teacher_folder = write_teacher(folder / "teacher")
        self.model, self.tokenizer = (
            load_model(self.teacher_folder, task="text-classification", labels=LABELS),
            load_tokenizer(self.teacher_folder),
        )
        with torch.no_grad():
            self.model.classifier.weight *= 100  # a teacher of random weights says almost the same about every text
        self.rows = tiny_rows(20)
        self.identity = tiny_identity(self.tokenizer)
        self.shards = [folder / f"shard-{shard}" for shard in range(NUM_SHARDS)]
        for shard in range(NUM_SHARDS):
            self.write(shard)

    def write(self, shard: int, *, to: Path | None = None, **changes: Any) -> None:
        part = self.rows.select(shard_indices(20, shard, NUM_SHARDS))
        target = to or self.shards[shard]
        write_tiny_cache(target, self.model, self.tokenizer, part, shard=shard, num_shards=NUM_SHARDS, **changes)

    def open(self) -> TeacherCache:
        return TeacherCache.open(self.shards, self.identity)


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    return Scored(tmp_path)


@given(st.integers(0, 500), st.integers(1, 40))
def test_shards_part_the_rows(num_rows: int, num_shards: int) -> None:
    shards = [shard_indices(num_rows, shard, num_shards) for shard in range(num_shards)]
    assert [index for shard in shards for index in shard] == list(range(num_rows))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shard_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="shard 3 of 3"):
        shard_indices(9, 3, 3)


def test_rows_are_found_in_any_order_of_shards(scored: Scored) -> None:
    cache = TeacherCache.open(scored.shards[::-1], scored.identity)
    assert len(cache) == 20
    order = np.random.default_rng(0).permutation(20).tolist()
    rows = scored.rows.select(order)
    ids = encode(scored.tokenizer, list(rows["text"]), 24).ids
    found = [cache.find(document_id, row) for document_id, row in zip(rows["id"], ids, strict=True)]
    expected = predict(scored.model, scored.tokenizer, list(rows["text"]), batch_size=20, max_tokens=24, hidden=True)
    np.testing.assert_allclose(cache.logits(found).numpy(), expected.logits_NC, atol=1e-5)
    assert expected.hidden is not None
    hidden_BTD = cache.hidden(found)
    assert hidden_BTD.dtype == torch.float16
    assert hidden_BTD.shape[1] == max(map(len, ids))
    for states_TD, expected_TD in zip(hidden_BTD.numpy(), expected.hidden, strict=True):
        length = len(expected_TD)
        np.testing.assert_allclose(states_TD[:length].astype(np.float32), expected_TD.astype(np.float32), atol=4e-3)
        assert not states_TD[length:].any()


def test_equal_rows_give_equal_bytes(scored: Scored, tmp_path: Path) -> None:
    scored.write(1, to=tmp_path / "again")
    for name in ("targets.safetensors", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (scored.shards[1] / name).read_bytes()


def test_unknown_document_and_other_tokens_are_told_apart(scored: Scored) -> None:
    cache = scored.open()
    ids = encode(scored.tokenizer, [scored.rows["text"][0]], 24).ids[0]
    cache.find("d0", ids)
    with pytest.raises(DataRejected, match="row d99 is not in the teacher's cache"):
        cache.find("d99", ids)
    with pytest.raises(DataRejected, match="row d0 was scored as other tokens"):
        cache.find("d0", [*ids, 5])


def truncate(shard: Path) -> None:
    path = shard / "targets.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(shard: Path) -> None:
    path = shard / "targets.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lie_about_rows(shard: Path) -> None:
    path = shard / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_rows": 99}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "differs from its manifest in targets.safetensors"),
        (flip, "differs from its manifest in targets.safetensors"),
        (lie_about_rows, "does not hold the 99 rows"),
        (lambda shard: (shard / "targets.safetensors").unlink(), "lacks targets.safetensors"),
        (lambda shard: (shard / "manifest.json").unlink(), "never finished"),
        (lambda shard: (shard / "manifest.json").write_text("{}"), "of another form"),
    ],
)
def test_damaged_shard_is_refused_by_name(scored: Scored, damage: Callable[[Path], Any], reason: str) -> None:
    damage(scored.shards[1])
    with pytest.raises(DataRejected, match=reason) as caught:
        scored.open()
    assert str(scored.shards[1]) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_sha256": "c" * 64},
        {"tokenizer_sha256": "c" * 64},
        {"data_sha256": "c" * 64},
        {"labels": ("positive", "negative")},
        {"max_tokens": 23},
        {"hidden": False},
    ],
)
def test_foreign_shard_is_refused_by_name(scored: Scored, changes: dict[str, Any]) -> None:
    scored.write(2, **changes)
    with pytest.raises(DataRejected, match=f"foreign: its {next(iter(changes))} differs") as caught:
        scored.open()
    assert str(scored.shards[2]) in str(caught.value)


def test_missing_and_repeated_shards_are_refused_by_name(scored: Scored) -> None:
    with pytest.raises(DataRejected, match="shard 1 of 3 is missing"):
        TeacherCache.open([scored.shards[0], scored.shards[2]], scored.identity)
    with pytest.raises(DataRejected, match=r"shard-0 is number 0 a second time"):
        TeacherCache.open([*scored.shards, scored.shards[0]], scored.identity)
    with pytest.raises(DataRejected, match="missing"):
        TeacherCache.open([], scored.identity)


def test_shard_of_another_division_is_refused(scored: Scored) -> None:
    write_tiny_cache(scored.shards[2], scored.model, scored.tokenizer, scored.rows, shard=2, num_shards=4)
    with pytest.raises(DataRejected, match="shard-2 is one of 4 and others of 3"):
        scored.open()


def test_document_in_two_shards_is_refused(scored: Scored) -> None:
    part = scored.rows.select([0, *shard_indices(20, 2, NUM_SHARDS)])
    write_tiny_cache(scored.shards[2], scored.model, scored.tokenizer, part, shard=2, num_shards=NUM_SHARDS)
    with pytest.raises(DataRejected, match="shard-2 repeats a document at position 0"):
        scored.open()


def test_cache_without_hidden_states_says_so(scored: Scored) -> None:
    identity = write_tiny_cache(scored.folder / "plain", scored.model, scored.tokenizer, scored.rows, hidden=False)
    cache = TeacherCache.open([scored.folder / "plain"], identity)
    row = cache.find("d0", encode(scored.tokenizer, [scored.rows["text"][0]], 24).ids[0])
    with pytest.raises(StageBug, match="no hidden states"):
        cache.hidden([row])
    assert cache.logits([row]).shape == (1, 2)


def test_canary_agrees_with_the_teacher_that_wrote_the_cache(scored: Scored) -> None:
    assert check_canary(scored.open(), scored.model, scored.tokenizer, scored.rows, seed=1) < 1e-4


def test_canary_detects_a_changed_teacher(scored: Scored) -> None:
    with torch.no_grad():
        scored.model.classifier.bias[0] += 0.01
    with pytest.raises(DataRejected, match=r"row d\d+ is off by 0\.01 .*at most 0\.001"):
        check_canary(scored.open(), scored.model, scored.tokenizer, scored.rows, seed=1)


def test_canary_detects_changed_hidden_states_behind_equal_logits(scored: Scored) -> None:
    with torch.no_grad():
        norm = scored.model.bert.encoder.layer[-1].output.LayerNorm
        norm.bias[0] += 0.05
        scored.model.bert.pooler.dense.bias -= 0.05 * scored.model.bert.pooler.dense.weight[:, 0]
    with pytest.raises(DataRejected, match=r"off by 0\.0[45]"):
        check_canary(scored.open(), scored.model, scored.tokenizer, scored.rows, seed=1)


def test_canary_detects_a_changed_tokenizer(scored: Scored) -> None:
    path = scored.teacher_folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"film"', '"movie"'))
    with pytest.raises(DataRejected, match="tokenizer is not the one of its cache"):
        check_canary(scored.open(), scored.model, load_tokenizer(scored.teacher_folder), scored.rows, seed=1)


def test_canary_detects_rows_that_slipped(scored: Scored) -> None:
    rows, texts = scored.rows, list(scored.rows["text"])
    found = predict(scored.model, scored.tokenizer, texts, batch_size=8, max_tokens=24, hidden=True)
    assert found.hidden is not None
    slipped = Predictions(
        logits_NC=np.roll(found.logits_NC, 1, axis=0),
        truncated_N=found.truncated_N,
        token_ids=found.token_ids,
        hidden=found.hidden,
    )
    write_cache(
        scored.folder / "slipped",
        ids=list(rows["id"]),
        token_ids=found.token_ids,
        predictions=slipped,
        identity=scored.identity,
        shard=0,
        num_shards=1,
    )
    cache = TeacherCache.open([scored.folder / "slipped"], scored.identity)
    with pytest.raises(DataRejected, match=r"row d\d+ is off by"):
        check_canary(cache, scored.model, scored.tokenizer, rows, seed=1)


def test_canary_detects_texts_that_changed_under_their_ids(scored: Scored) -> None:
    texts = list(scored.rows["text"])
    changed = Dataset.from_dict({"id": list(scored.rows["id"]), "text": texts[1:] + texts[:1], "label": [0] * 20})
    with pytest.raises(DataRejected, match=r"row d\d+ was scored as other tokens"):
        check_canary(scored.open(), scored.model, scored.tokenizer, changed, seed=1)
