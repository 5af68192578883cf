"""Timings come from real models, side by side."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import LABELS, write_teacher
from tiny_language import save, texts, tiny_causal, tiny_masked, tiny_tokenizer
from transformers import PreTrainedModel

from stillhouse.contract import ConfigurationError, StageBug
from stillhouse.evaluation.footprint import peak_memory
from stillhouse.evaluation.timing import LATENCY_SCHEMA, Timed, measure, weights_bytes
from stillhouse.models import load_model, load_tokenizer
from stillhouse.recipe import EvaluationConfig, Task

CONFIG = EvaluationConfig(latency_items=10, batch_size=8)
TEXTS = [f"the film was {word}" for word in ("good", "bad", "fine", "poor") for _ in range(5)]


def timed(folder: Path, task: Task) -> Timed:
    labels = LABELS if task == "text-classification" else ()
    return Timed(model=load_model(folder, task=task, labels=labels), tokenizer=load_tokenizer(folder), folder=folder)


def test_sizes_and_speeds_of_two_models_are_measured(tmp_path: Path) -> None:
    models = {
        name: timed(write_teacher(tmp_path / name, layers=layers), "text-classification")
        for name, layers in (("teacher", 4), ("kd", 1))
    }
    found = measure(models, TEXTS, task="text-classification", config=CONFIG, max_tokens=16, labels=LABELS)
    timings, latencies = found.timings, found.latencies
    assert latencies.schema.equals(LATENCY_SCHEMA, check_metadata=True)
    assert latencies["model"].to_pylist() == ["teacher"] * 10 + ["kd"] * 10
    assert latencies["item"].to_pylist() == [*range(10)] * 2
    for number, timing in enumerate(timings.models.values()):
        its = latencies["milliseconds"].to_numpy()[10 * number :][:10]
        assert timing.latency_p50_ms == pytest.approx(np.median(its), abs=0.002)
        assert its.min() > 0
    assert list(timings.models) == ["teacher", "kd"]
    assert (timings.num_items, timings.device) == (10, "cpu")
    teacher, student = timings.models["teacher"], timings.models["kd"]
    assert student.parameters < teacher.parameters
    assert student.num_bytes == (tmp_path / "kd" / "model.safetensors").stat().st_size
    assert student.latency_p50_ms <= student.latency_p95_ms


@pytest.mark.skipif(sys.platform != "linux", reason="only processes of Linux know their own peak of memory")
def test_memory_grows_by_the_weights_and_knows_no_order(tmp_path: Path) -> None:
    folders = {name: write_teacher(tmp_path / name, layers=layers) for name, layers in (("small", 1), ("large", 400))}
    how = {"task": "text-classification", "labels": LABELS, "batch_size": 8, "max_tokens": 16, "threads": 1}
    peaks = peak_memory(folders | {"again": folders["small"]}, TEXTS, **how)
    weights = {name: weights_bytes(folder) for name, folder in folders.items()}
    assert peaks["large"] - peaks["small"] > 0.8 * (weights["large"] - weights["small"])
    assert abs(peaks["again"] - peaks["small"]) < 0.2 * peaks["small"]


def test_a_model_that_cant_be_measured_stops_the_evaluation(tmp_path: Path) -> None:
    with pytest.raises(StageBug, match="memory of models"):
        peak_memory({"gone": tmp_path}, TEXTS, task="causal-lm", labels=(), batch_size=8, max_tokens=16, threads=1)


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_language_models_are_timed_by_what_they_say_at_the_end_of_a_text(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = task == "masked-lm"
    folder = save(tiny_masked() if masked else tiny_causal(), tiny_tokenizer(masked=masked), tmp_path)
    model = timed(folder, task)
    calls: list[tuple[int, int]] = []
    forward = model.model.forward
    monkeypatch.setattr(
        model.model, "forward", lambda **inputs: calls.append(tuple(inputs["input_ids"].shape)) or forward(**inputs)
    )
    timings = measure({"kd": model}, list(texts(20)["text"]), task=task, config=CONFIG, max_tokens=12).timings
    assert {rows for rows, _ in calls} == {1, 8, 4}
    assert max(tokens for _, tokens in calls) == 12
    assert timings.models["kd"].throughput > 0


def test_model_with_too_few_positions_is_refused(tmp_path: Path) -> None:
    model = timed(save(tiny_causal(), tiny_tokenizer(), tmp_path), "causal-lm")
    with pytest.raises(ConfigurationError, match="65 and the model has 64"):
        measure({"kd": model}, TEXTS, task="causal-lm", config=CONFIG, max_tokens=65)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_count_once(tmp_path: Path, tied: bool) -> None:
    plain = tiny_causal(tie_word_embeddings=tied)
    model = timed(save(plain, tiny_tokenizer(), tmp_path), "causal-lm")
    table = plain.config.vocab_size * plain.config.hidden_size
    body = sum(p.numel() for p in plain.model.parameters()) - table
    figures = measure({"kd": model}, TEXTS, task="causal-lm", config=CONFIG, max_tokens=16).timings.models["kd"]
    assert figures.parameters == body + table * (1 if tied else 2)
    assert 0 <= figures.num_bytes - 4 * figures.parameters < 4096


def test_bytes_are_those_on_disk_whatever_the_precision_in_memory(tmp_path: Path) -> None:
    model: PreTrainedModel = tiny_causal().to(torch.bfloat16)
    loaded = timed(save(model, tiny_tokenizer(), tmp_path), "causal-lm")
    assert loaded.model.dtype == torch.float32
    figures = measure({"kd": loaded}, TEXTS, task="causal-lm", config=CONFIG, max_tokens=16).timings.models["kd"]
    assert 0 <= figures.num_bytes - 2 * figures.parameters < 4096


def test_shards_add_up_and_strangers_do_not_count(tmp_path: Path) -> None:
    tiny_causal().save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(999))
    assert weights_bytes(tmp_path) == sum(shard.stat().st_size for shard in shards)
