from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.compression.base import Calibration
from stillhouse.compression.target import largest_within, latency_share, num_bytes, relative_size
from stillhouse.contract import ConfigurationError
from stillhouse.models import count_parameters, save_model
from stillhouse.recipe.compression import Target

NO_DOCUMENTS = Calibration(ids=[])


def configs(*layers: int, **config: Any) -> list[Any]:
    return [tiny_causal(layers=count, **config).config for count in layers]


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_those_of_the_file(tied: bool, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = tiny_causal(tie_word_embeddings=tied)
    save_model(model, tiny_tokenizer(), tmp_path)
    stored = load_file(tmp_path / "model.safetensors").values()
    assert count_parameters(model) == sum(tensor.numel() for tensor in stored)
    assert num_bytes(model) == sum(tensor.nbytes for tensor in stored)
    assert num_bytes(model.to(torch.bfloat16)) == sum(tensor.nbytes for tensor in stored) // 2


@pytest.mark.parametrize("model", [tiny_causal(tie_word_embeddings=True), tiny_causal(), tiny_masked()])
@pytest.mark.parametrize("measure", ["parameters", "bytes"])
def test_a_candidate_is_weighed_as_the_model_itself(model: Any, measure: Any) -> None:
    assert relative_size(model, model.config, measure) == 1.0


MODEL = tiny_causal(layers=6)
CANDIDATES = configs(5, 4, 3, 2, 1)
SHARES = [relative_size(MODEL, config, "parameters") for config in CANDIDATES]


@settings(max_examples=25)
@given(st.floats(0.05, 0.99))
def test_the_largest_candidate_that_meets_the_target_is_chosen(share: float) -> None:
    model, candidates, shares = MODEL, CANDIDATES, SHARES
    target = Target(share=share)
    if share < shares[-1]:
        with pytest.raises(ConfigurationError, match="give at least that"):
            largest_within(model, target, candidates, NO_DOCUMENTS)
    else:
        chosen = largest_within(model, target, candidates, NO_DOCUMENTS)
        assert shares[chosen] <= share
        assert chosen == 0 or shares[chosen - 1] > share


def test_the_share_that_is_named_can_be_met() -> None:
    model = tiny_causal(layers=6)
    with pytest.raises(ConfigurationError, match=r"has 0\.\d\d of the bytes; give at least that$") as caught:
        largest_within(model, Target(measure="bytes", share=0.01), configs(2, 1), NO_DOCUMENTS)
    named = float(str(caught.value).partition(" has ")[2].partition(" ")[0])
    assert largest_within(model, Target(measure="bytes", share=named), configs(2, 1), NO_DOCUMENTS) == 1


def test_a_model_of_fewer_layers_is_measured_as_faster() -> None:
    large, small = (tiny_causal(layers=count, width=64) for count in (12, 1))
    assert latency_share(large, small, list(range(6, 30))) < 0.6
    assert latency_share(small, large, list(range(6, 30))) > 1.5


def test_a_target_of_latency_is_measured_on_a_document() -> None:
    model = tiny_causal(layers=12, width=64)
    documents = Calibration(ids=[[], list(range(6, 30))])
    candidates = configs(11, 10, 1, width=64)
    assert largest_within(model, Target(measure="latency", share=0.5), candidates, documents) == 2
    with pytest.raises(ConfigurationError, match=r"has 0\.\d\d of the latency"):
        largest_within(model, Target(measure="latency", share=0.001), candidates, documents)
    with pytest.raises(ConfigurationError, match="needs documents"):
        largest_within(model, Target(measure="latency", share=0.5), candidates, Calibration(ids=[[]]))
