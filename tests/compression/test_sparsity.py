from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chain import subject
from tiny_language import tiny_causal, tiny_masked, tiny_tokenizer
from tiny_training import tiny_job
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from stillhouse.compression.base import Calibration, Subject
from stillhouse.compression.sparsity import Sparsification
from stillhouse.contract import ConfigurationError
from stillhouse.models import find_layers, load_model
from stillhouse.recipe.compression import HealConfig, SparsityStep
from stillhouse.recipe.learning import LoraConfig
from stillhouse.training import fit

NOTHING = Calibration(ids=[])


def sparsification(**step: Any) -> Sparsification:
    return Sparsification(SparsityStep.model_validate({"name": "sparse"} | step))


def masked(model: PreTrainedModel, **step: Any) -> Subject:
    return sparsification(**step).cut(subject(model), NOTHING, turn=1, rounds=1).subject


def linears(model: PreTrainedModel) -> Iterator[nn.Linear]:
    return (module for module in find_layers(model).modules() if isinstance(module, nn.Linear))


def zeros(model: PreTrainedModel) -> list[torch.Tensor]:
    return [linear.weight.detach() == 0 for linear in linears(model)]


@settings(max_examples=25)
@given(st.floats(0.01, 0.99))
def test_each_linear_layer_loses_exactly_its_share_of_least_magnitude(share: float) -> None:
    model = tiny_causal(layers=1)
    before = [linear.weight.detach().abs() for linear in linears(model)]
    masked(model, share=share)
    for zero, magnitude in zip(zeros(model), before, strict=True):
        assert int(zero.sum()) == round(share * zero.numel())
        if zero.any():
            assert magnitude[zero].max() <= magnitude[~zero].min()


def test_two_of_each_four_inputs_stay_the_larger_ones() -> None:
    model = tiny_causal()
    before = [linear.weight.detach().abs() for linear in linears(model)]
    masked(model, pattern="2:4")
    for zero, magnitude in zip(zeros(model), before, strict=True):
        zero_NK, magnitude_NK = zero.reshape(-1, 4), magnitude.reshape(-1, 4)
        assert (zero_NK.sum(-1) == 2).all()
        assert (magnitude_NK.masked_fill(~zero_NK, 0).amax(-1) <= magnitude_NK.masked_fill(zero_NK, 9).amin(-1)).all()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_zeros_survive_learning_and_the_file(task: Any, pattern: str, tmp_path: Path) -> None:
    model = tiny_causal() if task == "causal-lm" else tiny_masked()
    operation = sparsification(pattern=pattern)
    cut = operation.cut(subject(model), NOTHING, turn=1, rounds=operation.rounds(subject(model)))
    count = len(list(linears(model)))
    assert cut.did == f"zeroed 50.0% of the weights of {count} linear layers, {pattern}"
    expected = zeros(model)
    embeddings = model.get_input_embeddings().weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    ids_BT = torch.tensor([[7, 8, 9]])
    model(ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    learned = model(ids_BT).logits
    operation.write(cut.subject, tmp_path)
    read = load_model(tmp_path, task=task)
    assert not any("mask" in name or "orig" in name for name in read.state_dict())
    assert all(map(torch.equal, zeros(read), expected))
    torch.testing.assert_close(read(ids_BT).logits, learned)
    assert not torch.equal(read.get_input_embeddings().weight, embeddings), "nothing was learned"


def test_embeddings_heads_and_biases_are_left_alone() -> None:
    model = tiny_masked()
    inside = {id(linear.weight) for linear in linears(model)}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if id(p) not in inside}
    masked(model, share=0.9)
    after = dict(model.named_parameters())
    assert len(before) > 4
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_engine_trains_under_masks_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_at_four(point: Any) -> None:
        if point.step == 4:
            raise Stop

    def run(folder: Path, on_point: Any = None) -> tuple[PreTrainedModel, list[torch.Tensor], int | None]:
        job = tiny_job(folder, on_point=on_point)
        expected = zeros(masked(job.model).model)
        outcome = fit(replace(job, model=job.model))
        return outcome.model, expected, outcome.resumed_from

    whole, expected, _ = run(tmp_path / "whole")
    with pytest.raises(Stop):
        run(tmp_path / "stopped", stop_at_four)
    resumed, _, step = run(tmp_path / "stopped")
    assert step in (3, 4)
    for model in (whole, resumed):
        sparsification().write(replace(subject(model), tokenizer=tiny_tokenizer()), tmp_path / "out")
        assert all(map(torch.equal, zeros(model), expected))
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_what_can_not_be_sparse_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="pattern 2:4 can't cut into fours; use pattern unstructured"):
        masked(tiny_causal(intermediate_size=30), pattern="2:4")
    with pytest.raises(ConfigurationError, match="can't heal with lora"):
        masked(tiny_causal(), heal=HealConfig(lora=LoraConfig()))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    with pytest.raises(ConfigurationError, match="GPT2LMHeadModel has no linear layers"):
        masked(gpt2)
