"""Timings come from real models, side by side."""

from pathlib import Path

import pytest
from tiny import LABELS, write_teacher

from stillhouse.evaluation import measure
from stillhouse.models import load_model, load_tokenizer
from stillhouse.recipe import EvaluationConfig


def test_sizes_and_speeds_of_two_models_are_measured(tmp_path: Path) -> None:
    models = {}
    for name, layers in (("teacher", 4), ("kd", 1)):
        folder = write_teacher(tmp_path / name, layers=layers)
        models[name] = (load_model(folder, task="text-classification", labels=LABELS), load_tokenizer(folder))
    texts = [f"the film was {word}" for word in ("good", "bad", "fine", "poor") for _ in range(5)]
    timings = measure(models, texts, config=EvaluationConfig(latency_items=10, batch_size=8), max_tokens=16)
    assert list(timings.models) == ["teacher", "kd"]
    assert timings.num_items == 10
    teacher, student = timings.models["teacher"], timings.models["kd"]
    assert student.parameters < teacher.parameters
    assert student.num_bytes == 4 * student.parameters
    weights = (tmp_path / "kd" / "model.safetensors").stat().st_size
    assert student.num_bytes == pytest.approx(weights, rel=0.05)
    assert student.latency_p50_ms <= student.latency_p95_ms
