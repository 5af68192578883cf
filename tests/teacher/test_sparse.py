import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_language import texts, tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.models import Document, documents_of, template_sha256, tokenizer_sha256
from stillhouse.recipe import CacheConfig
from stillhouse.teacher import (
    CacheIdentity,
    SparseCache,
    check_sparse_canary,
    score_documents,
    shard_batches,
    write_sparse_cache,
)

TOKENIZER = tiny_tokenizer()


def identity_of(tokenizer: Any = TOKENIZER, **changes: Any) -> CacheIdentity:
    plain: dict[str, Any] = {
        "task": "causal-lm",
        "teacher_sha256": "a" * 64,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "template_sha256": template_sha256(tokenizer),
        "data_sha256": "b" * 64,
        "labels": (),
        "max_tokens": 24,
        "hidden": False,
        "method": "systematic",
        "samples": 50,
        "sampling_seed": 3,
        "temperature": 1.5,
        "vocabulary_size": len(tokenizer),
    }
    return CacheIdentity.model_validate(plain | changes)


def documents(*, masked: bool = False, count: int = 23) -> list[Document]:
    task: Any = "masked-lm" if masked else "causal-lm"
    tokenizer = tiny_tokenizer(masked=masked)
    return documents_of(task, tokenizer, texts(count), max_tokens=24, mask_share=0.2, seed=0)


def write(
    folder: Path,
    model: Any,
    docs: list[Document],
    *,
    shard: int = 0,
    num_shards: int = 1,
    max_file_bytes: int = 1 << 20,
    **changes: Any,
) -> CacheIdentity:
    identity = identity_of(**changes)
    batches = shard_batches([len(d.ids_L) for d in docs], 4, shard=shard, num_shards=num_shards)
    scored = score_documents(
        model,
        docs,
        batches,
        config=CacheConfig(method=identity.method, samples=identity.samples, seed=identity.sampling_seed),
        temperature=identity.temperature or 1.0,
        vocabulary=identity.vocabulary_size or 0,
        hidden=identity.hidden,
    )
    write_sparse_cache(
        folder, scored, identity=identity, shard=shard, num_shards=num_shards, max_file_bytes=max_file_bytes
    )
    return identity


def expected(model: Any, document: Document, temperature: float) -> torch.Tensor:
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([document.ids_L.tolist()])).logits[0]
    return (logits_TV[document.targets_P] / temperature).softmax(-1)


def dense(cache: SparseCache, document: Document) -> torch.Tensor:
    offsets_S, ids_K, probabilities_K = cache.targets([cache.find(document)])
    found_PV = torch.zeros(len(document.targets_P), len(TOKENIZER))
    rows_K = np.repeat(np.arange(len(offsets_S) - 1), np.diff(offsets_S))
    found_PV[rows_K, ids_K] = torch.from_numpy(probabilities_K)
    return found_PV


@pytest.mark.parametrize("masked", [False, True])
def test_records_are_the_teachers_distributions_within_a_count(tmp_path: Path, masked: bool) -> None:
    model, docs = (tiny_masked() if masked else tiny_causal()), documents(masked=masked)
    identity = write(tmp_path, model, docs)
    cache = SparseCache.open([tmp_path], identity)
    for document in docs:
        found_PV = dense(cache, document)
        torch.testing.assert_close(found_PV.sum(-1), torch.ones(len(found_PV)))
        assert (found_PV - expected(model, document, 1.5)).abs().max() <= 1 / 50 + 1e-5


def test_top_k_keeps_its_true_mass(tmp_path: Path) -> None:
    model, docs = tiny_causal(), documents()
    cache = SparseCache.open([tmp_path], write(tmp_path, model, docs, method="top-k", samples=5))
    for document in docs:
        wanted_PK = expected(model, document, 1.5).topk(5).values
        torch.testing.assert_close(dense(cache, document).sum(-1), wanted_PK.sum(-1), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("num_shards", [2, 5])
def test_any_number_of_shards_gives_the_same_records(tmp_path: Path, num_shards: int) -> None:
    model, docs = tiny_causal(), documents()
    whole = SparseCache.open([tmp_path / "whole"], write(tmp_path / "whole", model, docs, hidden=True))
    folders = [tmp_path / str(shard) for shard in range(num_shards)]
    for shard, folder in enumerate(folders):
        identity = write(folder, model, docs, shard=shard, num_shards=num_shards, max_file_bytes=300, hidden=True)
    assert len(list(folders[0].glob("targets-*"))) > 1
    parts = SparseCache.open(folders[::-1], identity)
    assert len(parts) == len(whole) == len(docs)
    for document in docs:
        (one, other) = ((cache, cache.find(document)) for cache in (whole, parts))
        blobs = [cache._records[row.file][row.start : row.stop] for cache, row in (one, other)]
        assert torch.equal(*blobs)
        assert torch.equal(*(cache.hidden([row]) for cache, row in (one, other)))


def test_order_and_company_of_documents_change_no_targets(tmp_path: Path) -> None:
    model, docs = tiny_causal(), documents()
    cache = SparseCache.open([tmp_path], write(tmp_path, model, docs))
    rows = [cache.find(document) for document in docs]
    together = cache.targets(rows[::-1])
    alone = [cache.targets([row]) for row in rows[::-1]]
    assert np.array_equal(together[1], np.concatenate([ids_K for _, ids_K, _ in alone]))
    assert np.array_equal(together[2], np.concatenate([values_K for *_, values_K in alone]))


def test_head_is_never_applied_to_a_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillhouse.teacher import scoring

    largest = 0
    linear = torch.nn.functional.linear

    def measured(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal largest
        if weight.shape[0] == len(TOKENIZER):
            largest = max(largest, states.numel() // states.shape[-1])
        return linear(states, weight, bias)

    monkeypatch.setattr(scoring, "LOGITS_AT_A_TIME", 3 * len(TOKENIZER))
    monkeypatch.setattr(torch.nn.functional, "linear", measured)
    write(tmp_path, tiny_causal(), documents())
    assert largest <= 4  # the check of the head looks at four tokens


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-9]), "differs from its manifest"),
    "flipped": (lambda f: f.write_bytes(f.read_bytes()[:-1] + bytes([f.read_bytes()[-1] ^ 1])), "differs"),
    "removed": (Path.unlink, "lacks targets-0000"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    identity = write(tmp_path, tiny_causal(), documents())
    spoil, reason = DAMAGES[damage]
    spoil(tmp_path / "targets-0000.safetensors")
    with pytest.raises(DataRejected, match=rf"cache shard {tmp_path} .*{reason}"):
        SparseCache.open([tmp_path], identity)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 2.0},
        {"samples": 20},
        {"sampling_seed": 4},
        {"method": "random"},
        {"teacher_sha256": "c" * 64},
        {"revision": "other"},
        {"tokenizer_sha256": "c" * 64},
        {"template_sha256": "c" * 64},
        {"data_sha256": "c" * 64},
        {"vocabulary_size": 30},
        {"max_tokens": 12},
    ],
)
def test_foreign_shard_is_refused_and_the_field_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, tiny_causal(), documents())
    with pytest.raises(DataRejected, match=f"foreign: its {next(iter(changes))} differs"):
        SparseCache.open([tmp_path], identity_of(**changes))


def test_shards_of_two_caches_are_not_mixed(tmp_path: Path) -> None:
    docs = documents()
    for shard in range(2):
        identity = write(tmp_path / str(shard), tiny_causal(), docs, shard=shard, num_shards=2)
    shutil.copytree(tmp_path / "0", tmp_path / "again")
    with pytest.raises(DataRejected, match="number 0 a second time"):
        SparseCache.open([tmp_path / "0", tmp_path / "again"], identity)
    with pytest.raises(DataRejected, match="cache shard 1 of 2 is missing"):
        SparseCache.open([tmp_path / "0"], identity)
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    (tmp_path / "1" / "manifest.json").write_text(json.dumps(manifest | {"num_shards": 3}))
    with pytest.raises(DataRejected, match="is one of 3 and others of 2"):
        SparseCache.open([tmp_path / "0", tmp_path / "1"], identity)


def test_other_tokens_or_labels_under_the_same_id_are_refused(tmp_path: Path) -> None:
    docs = documents()
    cache = SparseCache.open([tmp_path], write(tmp_path, tiny_causal(), docs))
    shifted = np.roll(docs[0].labels_L, 1)
    for changed in (
        dataclasses.replace(docs[0], labels_L=shifted),
        dataclasses.replace(docs[0], ids_L=docs[0].ids_L + 1),
    ):
        with pytest.raises(DataRejected, match=r"row t0 was scored as other tokens \(tokenizer, template or text"):
            cache.find(changed)
    with pytest.raises(DataRejected, match="row t99 is not in"):
        cache.find(dataclasses.replace(docs[0], id="t99"))


def canary(folder: Path, cached: Any, live: Any, *, docs: list[Document] | None = None, **changes: Any) -> float:
    docs = documents() if docs is None else docs
    identity = write(folder, cached, docs, **changes)
    cache = SparseCache.open([folder], identity)
    return check_sparse_canary(cache, live, tiny_tokenizer(), docs, seed=1)


@pytest.mark.parametrize("method", ["systematic", "random", "top-k"])
def test_canary_agrees_with_the_teacher_that_wrote_the_cache(tmp_path: Path, method: str) -> None:
    assert canary(tmp_path, tiny_causal(), tiny_causal(), method=method) < 1e-3


def test_canary_detects_another_teacher(tmp_path: Path) -> None:
    other = tiny_causal()
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(1.2)
    with pytest.raises(DataRejected, match=r"row t\d+: .* of its probability differ"):
        canary(tmp_path, tiny_causal(), other)


def test_canary_detects_records_that_slipped_by_one_position(tmp_path: Path) -> None:
    """Written as if every position's distribution were that of the one before."""
    model, docs = tiny_causal(), documents()

    class Slipped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.config = model, model.config
            self.base_model, self.get_output_embeddings = model.base_model, model.get_output_embeddings

        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            handle = model.model.register_forward_hook(
                lambda _module, _inputs, output: setattr(
                    output, "last_hidden_state", output.last_hidden_state.roll(1, 1)
                )
            )
            try:
                return model(input_ids=input_ids, **options)
            finally:
                handle.remove()

        @property
        def device(self) -> torch.device:
            return model.device

    with pytest.raises(DataRejected, match="of its probability differ"):
        canary(tmp_path, Slipped(), tiny_causal(), docs=docs)


def test_canary_detects_another_temperature_behind_an_equal_manifest(tmp_path: Path) -> None:
    docs = documents()
    identity = write(tmp_path, tiny_causal(), docs, temperature=1.0)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["identity"]["temperature"] = 1.5
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    cache = SparseCache.open([tmp_path], identity.model_copy(update={"temperature": 1.5}))
    with pytest.raises(DataRejected, match="of its probability differ"):
        check_sparse_canary(cache, tiny_causal(), TOKENIZER, docs, seed=1)


@pytest.mark.parametrize("what", ["tokenizer", "template"])
def test_canary_detects_a_changed_tokenizer_or_template(tmp_path: Path, what: str) -> None:
    docs = documents()
    cache = SparseCache.open([tmp_path], write(tmp_path, tiny_causal(), docs))
    other = tiny_tokenizer()
    if what == "template":
        other.chat_template = "{{ messages }}"
    else:
        other.add_tokens(["more"])
    with pytest.raises(DataRejected, match=f"the teacher's {what} is not the one of its cache"):
        check_sparse_canary(cache, tiny_causal(), other, docs, seed=1)


def test_model_that_scales_its_logits_is_refused(tmp_path: Path) -> None:
    model = tiny_causal()
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: output / 2)
    with pytest.raises(ConfigurationError, match="scales or caps"):
        write(tmp_path, model, documents())


def test_padding_vocabulary_of_the_teacher_gets_no_mass(tmp_path: Path) -> None:
    model = tiny_causal(vocab_size=len(TOKENIZER) + 10)
    with torch.no_grad():
        model.lm_head.weight[len(TOKENIZER) :] *= 100
    docs = documents()
    cache = SparseCache.open([tmp_path], write(tmp_path, model, docs))
    offsets_S, ids_K, probabilities_K = cache.targets([cache.find(d) for d in docs])
    assert ids_K.max() < len(TOKENIZER)
    np.testing.assert_allclose(np.add.reduceat(probabilities_K, offsets_S[:-1]), 1, rtol=1e-5)
