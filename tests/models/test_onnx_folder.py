"""ONNX classifiers: what is accepted, and what they answer to whoever predicts and measures."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from tiny import LABELS, write_teacher
from tiny_onnx import votes, voting_model, write_onnx

from stillhouse.contract import ConfigurationError
from stillhouse.evaluation.timing import Timed, measure, weights_bytes
from stillhouse.models import (
    OnnxClassifier,
    count_parameters,
    is_onnx_folder,
    load_model,
    load_tokenizer,
    predict,
)
from stillhouse.models.onnx_folder import check_onnx_file
from stillhouse.recipe import EvaluationConfig, Task

TEXTS = ["the plot", "a good film", "a", "the music of this story is great and the end was good"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "onnx")


def load(folder: Path, task: Task = "text-classification") -> OnnxClassifier:
    model = load_model(folder, task=task, labels=LABELS)
    assert isinstance(model, OnnxClassifier)
    return model


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / "model.onnx")
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_predictions_are_those_of_the_graph_and_padding_has_no_part_in_them(folder: Path) -> None:
    torch.set_num_threads(1)
    model, tokenizer = load(folder), load_tokenizer(folder)
    found = predict(model, tokenizer, TEXTS, batch_size=3, max_tokens=64)
    table_VC = votes(model.config.vocab_size)
    expected = np.stack([table_VC[ids].sum(axis=0) for ids in found.token_ids])
    np.testing.assert_allclose(found.logits_NC, expected, rtol=1e-5)
    again = predict(load(folder), tokenizer, TEXTS, batch_size=3, max_tokens=64)
    assert np.array_equal(again.logits_NC, found.logits_NC)


def test_it_is_measured_beside_others(folder: Path, tmp_path: Path) -> None:
    plain = write_teacher(tmp_path / "plain", layers=1)
    models = {
        name: Timed(
            model=load_model(path, task="text-classification", labels=LABELS),
            tokenizer=load_tokenizer(path),
            folder=path,
        )
        for name, path in (("kd", plain), ("onnx", folder))
    }
    config = EvaluationConfig(latency_items=10, batch_size=2)
    timings = measure(models, TEXTS, task="text-classification", config=config, max_tokens=16, labels=LABELS).timings
    found = timings.models["onnx"]
    size = models["onnx"].model.config.vocab_size
    assert found.parameters == count_parameters(models["onnx"].model) == votes(size).size
    assert found.num_bytes == weights_bytes(folder) == (folder / "model.onnx").stat().st_size
    assert timings.models["kd"].parameters == models["kd"].model.num_parameters()
    if sys.platform == "linux":
        assert found.peak_memory_bytes is not None
        assert found.peak_memory_bytes > 0


def test_safetensors_beside_it_are_what_is_read(folder: Path, tmp_path: Path) -> None:
    plain = write_teacher(tmp_path / "plain", layers=1)
    (plain / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    assert is_onnx_folder(folder)
    assert not is_onnx_folder(plain)
    assert not isinstance(load_model(plain, task="text-classification", labels=LABELS), OnnxClassifier)
    assert weights_bytes(plain) == (plain / "model.safetensors").stat().st_size


def test_it_has_neither_hidden_states_nor_a_training_mode(folder: Path) -> None:
    model, tokenizer = load(folder), load_tokenizer(folder)
    assert model.eval() is model
    with pytest.raises(ConfigurationError, match="can't be trained"):
        model.train()
    with pytest.raises(ConfigurationError, match="gives logits only"):
        predict(model, tokenizer, TEXTS, batch_size=2, max_tokens=16, hidden=True)


def test_labels_and_task_are_checked_as_for_other_models(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="has labels negative, positive and the recipe yes, no"):
        load_model(folder, task="text-classification", labels=("yes", "no"))
    with pytest.raises(ConfigurationError, match="must be a classifier"):
        load(folder, "causal-lm")
    change_config(folder, architectures=["BertModel"])
    with pytest.raises(ConfigurationError, match="must be a classifier"):
        load(folder)


def test_a_graph_of_another_shape_is_refused(folder: Path) -> None:
    model = voting_model(votes(9, labels=3))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigurationError, match=r"gives logits of shape \['batch', 3\] for 2 labels"):
        load(folder)
    model = voting_model(votes(9), inputs=("ids", "mask"))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigurationError, match="must take input_ids and attention_mask and give logits"):
        load(folder)


@pytest.mark.parametrize("data", [b"", b"x" * 1000, None])
def test_a_damaged_file_is_a_one_line_error(folder: Path, data: bytes | None) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-20] if data is None else data)
    with pytest.raises(ConfigurationError, match=r"model\.onnx can't be loaded") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def outside(model: onnx.ModelProto) -> None:
    table = model.graph.initializer[0]
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    table.external_data.add(key="location", value="../votes.bin")


def foreign(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    model.graph.node[0].domain = "ai.onnx.contrib"


@pytest.mark.parametrize(
    ("change", "reason"), [(outside, "keeps weights in other files"), (foreign, "operators of ai.onnx.contrib")]
)
def test_code_and_files_from_elsewhere_are_refused(
    folder: Path, change: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    check_onnx_file(folder / "model.onnx")
    (folder.parent / "votes.bin").write_bytes(votes(44).tobytes())
    rewrite(folder, change)
    with pytest.raises(ConfigurationError, match=reason):
        check_onnx_file(folder / "model.onnx")
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        load(folder)


def test_an_unreadable_file_does_not_pass_the_check(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigurationError, match="no readable ONNX model"):
        check_onnx_file(folder / "model.onnx")


def test_models_of_transformers_do_not_bring_onnx_runtime(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "plain", layers=1)
    code = (
        "import sys; from pathlib import Path; from stillhouse.models import load_model; "
        f"load_model(Path({str(folder)!r}), task='text-classification', labels={LABELS!r}); "
        "sys.exit('onnxruntime' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
