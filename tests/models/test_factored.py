import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LABELS, write_teacher
from tiny_language import tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer, save_model
from stillhouse.models.factored import RANKS, FactoredEmbedding, FactoredLinear, install_factors

QUERY = "bert.encoder.layer.0.attention.self.query"
IDS = torch.tensor([[2, 7, 9, 11, 3]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier with two factored layers and a factored embedding."""
    model = load_model(write_teacher(tmp_path / "whole"), task="text-classification", labels=LABELS)
    tokenizer = load_tokenizer(tmp_path / "whole")
    torch.manual_seed(4)
    install_factors(model, {QUERY: 3, "bert.encoder.layer.1.output.dense": 5, "bert.embeddings.word_embeddings": 4})
    for module in model.modules():
        if isinstance(module, FactoredLinear | FactoredEmbedding):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter)
    save_model(model, tokenizer, tmp_path / "factored")
    return tmp_path / "factored"


def read(folder: Path) -> Any:
    return load_model(folder, task="text-classification", labels=LABELS)


def test_a_factored_folder_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    model = read(folder)
    query = model.bert.encoder.layer[0].attention.self.query
    assert isinstance(query, FactoredLinear)
    assert (query.in_features, query.out_features, query.rank) == (32, 32, 3)
    assert isinstance(model.get_input_embeddings(), FactoredEmbedding)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not model.training
    save_model(model, load_tokenizer(folder), tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    again = read(tmp_path / "again")
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=IDS).logits, again(input_ids=IDS).logits)


def test_factors_say_what_their_product_says() -> None:
    torch.manual_seed(0)
    linear, table = FactoredLinear(6, 5, 2, bias=True), FactoredEmbedding(7, 4, 2, padding_idx=0)
    states_NI = torch.randn(3, 6)
    product_MD = linear.up.weight @ linear.down.weight
    torch.testing.assert_close(linear(states_NI), states_NI @ product_MD.T + linear.up.bias)
    torch.testing.assert_close(table(IDS % 7), (table.codes.weight @ table.up.weight.T)[IDS % 7])
    assert table(torch.tensor([0])).abs().max() == 0


@pytest.mark.parametrize("model", [tiny_causal(), tiny_causal(tie_word_embeddings=True), tiny_masked()])
def test_language_models_with_and_without_bias_or_ties(model: Any, tmp_path: Path) -> None:
    causal = "Llama" in type(model).__name__
    name = "model.layers.1.mlp.up_proj" if causal else "bert.encoder.layer.1.intermediate.dense"
    install_factors(model, {name: 2})
    assert (model.get_submodule(name).up.bias is None) is causal
    save_model(model, tiny_tokenizer(masked=not causal), tmp_path)
    loaded = load_model(tmp_path, task="causal-lm" if causal else "masked-lm")
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=IDS).logits, loaded(input_ids=IDS).logits)
    head, table = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert (head.weight is table.weight) is bool(model.config.tie_word_embeddings)


def test_precision_is_as_asked(folder: Path) -> None:
    model = load_model(folder, task="text-classification", labels=LABELS, precision="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_random_state_is_left_alone(folder: Path) -> None:
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    read(folder)
    assert torch.equal(torch.rand(3), expected)


def test_lacking_factors_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(f"{QUERY}.down.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=rf"lacks 1 weights \({QUERY}\.down\.weight\)"):
        read(folder)


@pytest.mark.parametrize(
    ("ranks", "reason"),
    [
        ({QUERY: 2}, "can't be loaded"),
        ({QUERY: 0}, f"module {QUERY} has rank 0"),
        ({QUERY: "3"}, f"module {QUERY} has rank 3"),
        ({"bert.encoder": 3}, "no linear layer or embedding bert.encoder"),
        ({"elsewhere": 3}, "no linear layer or embedding elsewhere"),
        ([3], "is no table"),
    ],
)
def test_ranks_that_do_not_fit_are_a_one_line_error(folder: Path, ranks: object, reason: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {RANKS: ranks}))
    with pytest.raises(ConfigurationError, match=reason) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_another_task_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="only be read as what it was written"):
        load_model(folder, task="causal-lm")
