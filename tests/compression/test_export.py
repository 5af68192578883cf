"""Exported classifiers: they answer as the model that they come from, and their files say nothing of their making."""

import copy
import logging
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny import LABELS, NEUTRAL, POSITIVE, write_teacher
from tiny_language import tiny_causal, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from stillhouse.compression.base import Calibration, Subject
from stillhouse.compression.export import Export
from stillhouse.contract import ConfigurationError
from stillhouse.evaluation.timing import weights_bytes
from stillhouse.models import count_parameters, load_model, load_tokenizer, predict, save_model
from stillhouse.models.factored import RANKS, install_factors
from stillhouse.models.onnx_folder import check_onnx_file
from stillhouse.recipe import ExportStep

TEXTS = ["the plot", "a", " ".join(POSITIVE), " ".join(NEUTRAL), "a film with good music and a great actor"]
PREDICT = {"batch_size": 2, "max_tokens": 64}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    torch.set_num_threads(1)
    folder = write_teacher(tmp_path_factory.mktemp("export") / "model", layers=2)
    model = load_model(folder, task="text-classification", labels=LABELS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # as distinct as those of a trained model; equal ones are kept once
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return Subject(model=model, tokenizer=load_tokenizer(folder), task="text-classification", labels=LABELS)


def export(subject: Subject, folder: Path, format: Literal["onnx", "onnx-int8"] = "onnx") -> Path:
    Export(ExportStep(name="small", format=format)).write(subject, folder)
    return folder


def logits(subject: Subject, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the model says, and what the exported one does."""
    exported = load_model(folder, task="text-classification", labels=subject.labels)
    tokenizer = load_tokenizer(folder)
    return (
        predict(subject.model, subject.tokenizer, TEXTS, **PREDICT).logits_NC,
        predict(exported, tokenizer, TEXTS, **PREDICT).logits_NC,
    )


@pytest.fixture(scope="module")
def exact(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(subject, tmp_path_factory.mktemp("export") / "exact")


@pytest.fixture(scope="module")
def rounded(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(subject, tmp_path_factory.mktemp("export") / "rounded", "onnx-int8")


def test_the_exported_model_says_what_the_model_says(subject: Subject, exact: Path) -> None:
    said, exported = logits(subject, exact)
    assert np.ptp(said[:, 0]) > 0.02
    np.testing.assert_allclose(exported, said, atol=1e-5)
    names = {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in exact.iterdir()} == names


def test_rounded_weights_are_smaller_and_nearly_as_good(subject: Subject, exact: Path, rounded: Path) -> None:
    said, after = logits(subject, rounded)
    assert 0 < np.abs(after - said).max() < 0.1 * np.ptp(said)
    assert weights_bytes(rounded) < 0.6 * weights_bytes(exact)  # of so few weights, the graph is a good part
    models = [load_model(folder, task="text-classification", labels=LABELS) for folder in (exact, rounded)]
    assert {count_parameters(model) for model in models} == {count_parameters(subject.model)}


def test_products_of_rounded_weights_fit_where_they_are_added(rounded: Path) -> None:
    graph = onnx.load(rounded / "model.onnx").graph
    factors = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    matrices = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in factors]
    assert len(matrices) == 2 * 6 + 2
    assert all(matrix.dtype == np.int8 and np.abs(matrix.astype(int)).max() <= 64 for matrix in matrices)


def test_equal_models_give_equal_files_without_a_word(
    subject: Subject,
    rounded: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    random_state = torch.get_rng_state()
    weights = copy.deepcopy(subject.model.state_dict())
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    again = export(subject, tmp_path / "again", "onnx-int8")
    captured = capfd.readouterr()
    assert (captured.out, captured.err, [str(warning.message) for warning in recwarn]) == ("", "", [])
    assert (logging.root.handlers, logging.root.manager.disable) == (handlers, disabled)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, weights[name]) for name, value in subject.model.state_dict().items())
    for path in rounded.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


@pytest.mark.parametrize("format", ["exact", "rounded"])
def test_files_say_nothing_of_this_machine(format: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(format)
    check_onnx_file(folder / "model.onnx")
    for path in folder.iterdir():
        for trace in (b"/work", b"/root", b"/tmp", b"site-packages", b".py", b"torch", str(folder.parent).encode()):
            assert trace not in path.read_bytes(), (path.name, trace)


def test_a_factored_model_is_exported_as_its_product(subject: Subject, tmp_path: Path) -> None:
    model = copy.deepcopy(subject.model)
    install_factors(model, {"bert.encoder.layer.0.intermediate.dense": 8, "bert.embeddings.word_embeddings": 8})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".up." in name or ".down." in name or ".codes." in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    factored = Subject(model=model, tokenizer=subject.tokenizer, task=subject.task, labels=subject.labels)
    folder = export(factored, tmp_path / "onnx")
    said, exported = logits(factored, folder)
    np.testing.assert_allclose(exported, said, atol=1e-5)
    assert RANKS not in (folder / "config.json").read_text()
    read = load_model(folder, task="text-classification", labels=LABELS)
    assert count_parameters(read) == count_parameters(model)


def test_a_decoder_with_a_classifier_is_exported_too(subject: Subject, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(subject.tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            pad_token_id=subject.tokenizer.pad_token_id,
            num_labels=2,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
        )
    ).eval()
    save_model(model, subject.tokenizer, tmp_path / "model")
    decoder = Subject(model=model, tokenizer=subject.tokenizer, task="text-classification", labels=LABELS)
    said, exported = logits(decoder, export(decoder, tmp_path / "onnx"))
    np.testing.assert_allclose(exported, said, atol=1e-5)


def test_a_cut_says_what_will_be_written_and_refuses_other_tasks(subject: Subject) -> None:
    nothing = Calibration(ids=[])
    step = Export(ExportStep(name="small"))
    cut = step.cut(subject, nothing, turn=1, rounds=step.rounds(subject))
    assert cut.subject is subject
    assert "8 bits" in cut.did
    assert "unchanged" in Export(ExportStep(name="x", format="onnx")).cut(subject, nothing, turn=1, rounds=1).did
    language = Subject(model=tiny_causal(), tokenizer=tiny_tokenizer(), task="causal-lm")
    with pytest.raises(ConfigurationError, match="step small exports classifiers, and the task is causal-lm"):
        step.cut(language, nothing, turn=1, rounds=1)


def test_what_pytorch_can_not_export_is_named(subject: Subject, tmp_path: Path) -> None:
    model = copy.deepcopy(subject.model)
    forward = model.bert.pooler.forward
    model.bert.pooler.forward = lambda states: forward(states) if states.sum().item() > 0 else -forward(states)
    odd = Subject(model=model, tokenizer=subject.tokenizer, task=subject.task, labels=LABELS)
    with pytest.raises(ConfigurationError, match="a BertForSequenceClassification can't be exported to ONNX") as caught:
        export(odd, tmp_path / "onnx")
    assert "\n" not in str(caught.value)
