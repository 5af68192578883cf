import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LABELS, NEUTRAL
from tiny_language import texts, tiny_causal, tiny_masked, tiny_tokenizer
from tiny_training import MAX_TOKENS, tiny_job
from torch import nn

from stillhouse.compression.base import Calibration, Cut, Subject
from stillhouse.compression.low_rank import Factorisation
from stillhouse.contract import ConfigurationError
from stillhouse.models import Tap, TapRequest, encode, head_states, load_model, load_tokenizer, save_model
from stillhouse.models.factored import FactoredEmbedding, FactoredLinear
from stillhouse.recipe.compression import LowRankStep
from stillhouse.training import fit


def factorise(model: Any, ids: list[list[int]], **fields: Any) -> Cut:
    causal = "Llama" in type(model).__name__
    subject = Subject(
        model=model, tokenizer=tiny_tokenizer(masked=not causal), task="causal-lm" if causal else "masked-lm"
    )
    operation = Factorisation(LowRankStep(kind="low-rank", name="thin", **fields))
    assert operation.rounds(subject) == 1
    return operation.cut(subject, Calibration(ids=ids), turn=1, rounds=1)


def documents(*, masked: bool = False, count: int = 30) -> list[list[int]]:
    return encode(tiny_tokenizer(masked=masked), list(texts(count)["text"]), 32).ids


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


def inputs_of(model: Any, name: str, ids: list[list[int]]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _module, args: seen.append(args[0][0].double()))
    with torch.no_grad():
        for row in ids:
            model(input_ids=torch.tensor([row]))
    handle.remove()
    return torch.cat(seen)


def product(layer: FactoredLinear) -> torch.Tensor:
    return layer.up.weight.detach().double() @ layer.down.weight.detach().double()


@settings(deadline=None, max_examples=8)
@given(share=st.floats(0.3, 0.95), masked=st.booleans())
def test_the_squared_output_error_is_what_the_dropped_singular_values_say(share: float, masked: bool) -> None:
    whole = tiny_masked() if masked else tiny_causal()
    name = "bert.encoder.layer.0.intermediate.dense" if masked else "model.layers.0.mlp.up_proj"
    ids = documents(masked=masked)
    model = copy.deepcopy(whole)
    factorise(model, ids, share=share, calibration_rows=20)
    layer = model.get_submodule(name)
    assert isinstance(layer, FactoredLinear)
    inputs_NI = inputs_of(whole, name, ids[:20])
    weight_MD = whole.get_submodule(name).weight.detach().double()
    error = ((weight_MD - product(layer)) @ inputs_NI.T).square().sum()
    values_K = torch.linalg.svdvals(weight_MD @ inputs_NI.T)
    torch.testing.assert_close(error, values_K[layer.rank :].square().sum(), rtol=1e-3, atol=1e-6)
    # No factors of that rank lose less (Eckart and Young), plain ones of the weights neither.
    left, values, right = torch.linalg.svd(weight_MD)
    plain = (left[:, : layer.rank] * values[: layer.rank]) @ right[: layer.rank]
    assert error <= ((weight_MD - plain) @ inputs_NI.T).square().sum() * (1 + 1e-6)


@settings(deadline=None, max_examples=6)
@given(share=st.floats(0.3, 0.99), masked=st.booleans())
def test_a_share_bounds_the_weights_of_each_layer(share: float, masked: bool) -> None:
    whole = tiny_masked() if masked else tiny_causal()
    model = copy.deepcopy(whole)
    factorise(model, documents(masked=masked, count=4), share=share)
    for layer in model.modules():
        if isinstance(layer, FactoredLinear):
            size = layer.in_features * layer.out_features
            assert layer.rank * (layer.in_features + layer.out_features) <= share * size
            assert (layer.rank + 1) * (layer.in_features + layer.out_features) > share * size
    assert model.num_parameters() < whole.num_parameters()


def test_energy_is_kept_by_the_smallest_rank_and_layers_that_would_not_shrink_stay_whole() -> None:
    whole = tiny_causal()
    low = "model.layers.0.mlp.down_proj"
    with torch.no_grad():  # Of rank 3, so that few ranks hold all.
        weight = whole.get_submodule(low).weight
        weight.copy_(torch.randn(16, 3) @ torch.randn(3, 32))
    model = copy.deepcopy(whole)
    cut = factorise(model, documents(), energy=0.99999)
    factored = {name: layer for name, layer in model.named_modules() if isinstance(layer, FactoredLinear)}
    assert factored.keys() >= {low}
    assert len(factored) < 14
    assert factored[low].rank == 3
    assert cut.did.startswith(f"{len(factored)} of 14 linear layers factorised at ranks 3 to")
    for name, layer in factored.items():
        scaled = whole.get_submodule(name).weight.detach().double() @ inputs_of(whole, name, documents()).T
        squares = torch.linalg.svdvals(scaled).square()
        kept = squares.cumsum(0) / squares.sum()
        assert kept[layer.rank - 1] >= 0.99999 - 1e-6
        assert layer.rank == 1 or kept[layer.rank - 2] < 0.99999 + 1e-6


def test_full_rank_factors_give_the_same_logits() -> None:
    whole, ids = tiny_causal(), documents()
    low = [name for name, layer in whole.named_modules() if isinstance(layer, nn.Linear) and "layers" in name]
    with torch.no_grad():
        for name in low:
            weight = whole.get_submodule(name).weight
            rank = (weight.numel() - 1) // sum(weight.shape)
            weight.copy_(torch.randn(weight.shape[0], rank) @ torch.randn(rank, weight.shape[1]) / 8)
    model = copy.deepcopy(whole)
    cut = factorise(model, ids, share=0.999)
    assert cut.did.startswith("14 of 14")
    torch.testing.assert_close(logits(model, ids[0]), logits(whole, ids[0]), rtol=1e-3, atol=1e-4)


def test_what_would_do_is_said_and_does() -> None:
    with pytest.raises(ConfigurationError, match=r"lower energy to (0\.\d+) or less") as caught:
        factorise(tiny_causal(), documents(), energy=0.9999999)
    enough = float(str(caught.value).split("lower energy to ")[1].split()[0])
    factorise(tiny_causal(), documents(), energy=enough)
    with pytest.raises(ConfigurationError, match=r"raise share to (0\.\d+) or more") as caught:
        factorise(tiny_causal(), documents(), share=0.01)
    enough = float(str(caught.value).split("raise share to ")[1].split()[0])
    factorise(tiny_causal(), documents(), share=enough)


def test_without_documents_nothing_is_measured() -> None:
    with pytest.raises(ConfigurationError, match="need documents"):
        factorise(tiny_causal(), [[]], share=0.5)


def test_embeddings_are_factorised_unless_they_are_the_head(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="output head's weights, too"):
        factorise(tiny_masked(), documents(masked=True), share=0.5, embeddings=True)
    whole = tiny_causal()
    model = copy.deepcopy(whole)
    cut = factorise(model, documents(), share=0.5, embeddings=True)
    table = model.get_input_embeddings()
    assert isinstance(table, FactoredEmbedding)
    assert f"the embeddings at rank {table.rank};" in cut.did
    weight_VD = whole.get_input_embeddings().weight.detach()
    error = (weight_VD - (table.codes.weight @ table.up.weight.T)).square().sum()
    torch.testing.assert_close(error, torch.linalg.svdvals(weight_VD)[table.rank :].square().sum())
    Factorisation(LowRankStep(kind="low-rank", name="thin", share=0.5)).write(cut.subject, tmp_path)
    torch.testing.assert_close(
        logits(load_model(tmp_path, task="causal-lm"), documents()[0]), logits(model, documents()[0]), rtol=0, atol=0
    )


def test_many_passes_measure_what_one_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stillhouse.compression import low_rank

    one, other = tiny_causal(), tiny_causal()
    factorise(one, documents(), share=0.5)
    monkeypatch.setattr(low_rank, "MOMENT_BYTES", 8 * 16**2 * 3)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    factorise(other, documents(), share=0.5)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_head_and_taps_go_on_working() -> None:
    model, ids = tiny_causal(), documents()
    factorise(model, ids, share=0.5)
    batch = torch.tensor([ids[0]])
    with torch.no_grad():
        states = head_states(model, input_ids=batch)
        with Tap(model, TapRequest(hidden=frozenset({0, 2}), qkv=frozenset({1}))) as tap:
            expected = model(input_ids=batch).logits
            captured = tap.take()
    torch.testing.assert_close(model.lm_head(states), expected)
    assert captured.hidden[2].shape == (1, len(ids[0]), 16)
    assert captured.queries[1].shape == (1, len(ids[0]), 16)


def test_a_factored_student_learns_and_is_read_again(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=1)
    ids = encode(job.tokenizer, [" ".join(NEUTRAL)], MAX_TOKENS).ids
    subject = Subject(model=job.model, tokenizer=job.tokenizer, task="text-classification", labels=LABELS)
    step = LowRankStep(kind="low-rank", name="thin", share=0.5, embeddings=True)
    Factorisation(step).cut(subject, Calibration(ids=ids), turn=1, rounds=1)
    before = {name: tensor.clone() for name, tensor in job.model.state_dict().items()}
    outcome = fit(job)
    changed = [name for name, tensor in outcome.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert "bert.encoder.layer.0.attention.self.query.down.weight" in changed
    assert "bert.embeddings.word_embeddings.up.weight" in changed
    save_model(outcome.model, job.tokenizer, tmp_path / "out")
    loaded = load_model(tmp_path / "out", task="text-classification", labels=LABELS)
    assert len(load_tokenizer(tmp_path / "out")) == len(job.tokenizer)
    trained = outcome.model.state_dict()
    assert {name: tensor.tolist() for name, tensor in loaded.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in trained.items()
    }
    # Where a tensor lies in memory decides the order of sums in a matrix product.
    torch.testing.assert_close(logits(loaded, ids[0]), logits(outcome.model.eval(), ids[0]))
