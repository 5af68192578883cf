from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import LABELS, write_teacher
from tiny_language import tiny_causal, tiny_tokenizer
from tiny_training import tiny_job
from torch import nn
from torchao.quantization import quantize_

from stillhouse.compression.base import Calibration, Subject
from stillhouse.compression.quantize import Quantization, RoundedLinear, config_of
from stillhouse.contract import ConfigurationError
from stillhouse.models import load_model, load_tokenizer, predict
from stillhouse.recipe.compression import HealConfig, QuantizeStep
from stillhouse.training import fit

SCHEMES = ["int8", "int8-dynamic", "int4"]
TEXTS = ["the plot was good", "a scene of this film was awful", "music"]
NOTHING = Calibration(ids=[])


def quantization(scheme: Any, *, heal: bool = False) -> Quantization:
    return Quantization(
        QuantizeStep(kind="quantize", name="ints", scheme=scheme, heal=HealConfig(epochs=1) if heal else None)
    )


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    folder = write_teacher(tmp_path / "teacher", layers=2)
    model = load_model(folder, task="text-classification", labels=LABELS)
    with torch.no_grad():
        model.classifier.weight *= 30
        for module in model.bert.encoder.modules():  # New layers hardly change what passes through them.
            if isinstance(module, nn.Linear):
                module.weight *= 10
    return Subject(model=model, tokenizer=load_tokenizer(folder), task="text-classification", labels=LABELS)


def read(folder: Path) -> Any:
    return load_model(folder, task="text-classification", labels=LABELS)


def answers(model: Any, tokenizer: Any) -> torch.Tensor:
    return torch.tensor(predict(model, tokenizer, TEXTS, batch_size=2, max_tokens=32).logits_NC)


def write(operation: Quantization, subject: Subject, folder: Path) -> None:
    operation.write(operation.cut(subject, NOTHING, turn=1, rounds=1).subject, folder)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_folder_is_smaller_read_exactly_and_always_the_same(
    subject: Subject, scheme: str, tmp_path: Path
) -> None:
    operation = quantization(scheme)
    exact = answers(subject.model, subject.tokenizer)
    assert operation.rounds(subject) == 1
    for name in ("a", "b"):
        write(operation, subject, tmp_path / name)
    assert torch.equal(answers(subject.model, subject.tokenizer), exact)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {"teacher", "a", "b"}
    before = (tmp_path / "teacher/model.safetensors").stat().st_size
    assert (tmp_path / "a/model.safetensors").stat().st_size < before
    model, tokenizer = read(tmp_path / "a"), load_tokenizer(tmp_path / "a")
    found = answers(model, tokenizer)
    assert torch.equal(answers(read(tmp_path / "b"), tokenizer), found)
    difference = (found - exact).abs().max()
    assert 0 < difference < 0.5 * exact.abs().max()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layers_are_integers_and_head_and_embeddings_stay(subject: Subject, scheme: str, tmp_path: Path) -> None:
    weights = subject.model.state_dict()
    operation = quantization(scheme)
    cut = operation.cut(subject, NOTHING, turn=1, rounds=1)
    assert cut.did.startswith("12 linear layers have int")
    assert ("a byte each" in cut.did) is (scheme == "int4")
    operation.write(cut.subject, tmp_path / "a")
    stored = load_file(tmp_path / "a/model.safetensors")
    integers = [name for name, tensor in stored.items() if tensor.dtype == torch.int8 and name.endswith("qdata")]
    assert len(integers) == 12
    assert all(".layer." in name for name in integers)
    for name in ("classifier.weight", "bert.pooler.dense.weight", "bert.embeddings.word_embeddings.weight"):
        assert torch.equal(stored[name], weights[name])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_that_heals_computes_what_will_be_written_and_learns(
    subject: Subject, scheme: str, tmp_path: Path
) -> None:
    exact = answers(subject.model, subject.tokenizer)
    names = list(subject.model.state_dict())
    operation = quantization(scheme, heal=True)
    prepared = operation.cut(subject, NOTHING, turn=1, rounds=1).subject
    assert list(prepared.model.state_dict()) == names
    assert sum(isinstance(module, RoundedLinear) for module in prepared.model.modules()) == 12
    rounded = answers(prepared.model, subject.tokenizer)
    assert (rounded - exact).abs().max() > 1e-3
    batch = subject.tokenizer(TEXTS, padding=True, return_tensors="pt")
    prepared.model(**batch).logits[:, 0].sum().backward()
    grad = prepared.model.bert.encoder.layer[0].attention.self.query.weight.grad
    assert grad.abs().sum() > 0
    operation.write(prepared, tmp_path / "a")
    assert not any(isinstance(module, RoundedLinear) for module in subject.model.modules())
    assert torch.equal(answers(subject.model, subject.tokenizer), exact)
    written = answers(read(tmp_path / "a"), subject.tokenizer)
    # An input between two integers may be rounded to the other one, where the last bit before it differs.
    slack = 0.5 if scheme == "int8-dynamic" else 1e-3
    assert (written - rounded).abs().max() < slack * (rounded - exact).abs().max()
    write(quantization(scheme), subject, tmp_path / "b")
    assert torch.equal(answers(read(tmp_path / "b"), subject.tokenizer), written)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_computes_what_its_quantized_self_does(scheme: Any) -> None:
    torch.manual_seed(0)
    plain, rounded = nn.Linear(64, 5), RoundedLinear(scheme)
    rounded.weight, rounded.bias = plain.weight, plain.bias
    states_BTD = torch.randn(2, 7, 64)
    with torch.no_grad():
        exact, expected = plain(states_BTD), rounded(states_BTD)
        quantize_(plain, config_of(scheme))
        torch.testing.assert_close(plain(states_BTD), expected, rtol=1e-5, atol=1e-5)
    assert (exact - expected).abs().max() > 1e-3


def test_a_layer_learns_as_if_nothing_were_rounded() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(32, 3)
    rounded = RoundedLinear("int8")
    rounded.weight, rounded.bias = plain.weight, plain.bias
    states_NI = torch.randn(4, 32, requires_grad=True)
    rounded(states_NI).sum().backward()
    torch.testing.assert_close(plain.weight.grad, states_NI.detach().sum(0).expand(3, 32))
    steps_M = plain.weight.detach().abs().amax(1) / 127.5
    counts_MD = (states_NI.grad[0] - plain.weight.detach().sum(0)).abs()
    assert counts_MD.max() <= steps_M.sum()


def test_a_rounded_student_learns_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def prepared(folder: Path, **changes: Any) -> Any:
        job = tiny_job(folder, epochs=1, **changes)
        subject = Subject(model=job.model, tokenizer=job.tokenizer, task="text-classification", labels=LABELS)
        return job, quantization("int8", heal=True).cut(subject, NOTHING, turn=1, rounds=1).subject

    class Stop(Exception):
        pass

    def stop(point: Any) -> None:
        if point.step == 3:
            raise Stop

    job, subject = prepared(tmp_path / "one")
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    expected = fit(job).model.state_dict()
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(expected[name], before[name])
    with pytest.raises(Stop):
        fit(prepared(tmp_path / "other", on_point=stop)[0])
    job, subject = prepared(tmp_path / "other")
    outcome = fit(job)
    assert outcome.resumed_from
    for name, tensor in outcome.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    quantization("int8", heal=True).write(subject, tmp_path / "out")
    assert read(tmp_path / "out").config.num_labels == 2


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoders_head_stays_exact(tied: bool, tmp_path: Path) -> None:
    model = tiny_causal(width=32, tie_word_embeddings=tied)
    subject = Subject(model=model, tokenizer=tiny_tokenizer(), task="causal-lm")
    write(quantization("int4"), subject, tmp_path)
    loaded = load_model(tmp_path, task="causal-lm")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    ids = torch.tensor([[6, 8, 10]])
    with torch.inference_mode():
        assert 0 < (loaded(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() < 10


def test_rows_that_groups_do_not_divide_are_refused() -> None:
    subject = Subject(model=tiny_causal(width=16), tokenizer=tiny_tokenizer(), task="causal-lm")
    with pytest.raises(ConfigurationError, match=r"q_proj has rows of 16; choose scheme int8"):
        quantization("int4").cut(subject, NOTHING, turn=1, rounds=1)
