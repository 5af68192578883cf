"""The gate of a step: what an interval says about its bound."""

from pathlib import Path
from typing import Any

import pytest
from tiny import LABELS, write_teacher, write_workflow

from stillhouse.compression import Held, judge_step
from stillhouse.compression.applying import Applied
from stillhouse.compression.judging import _verdict
from stillhouse.contract import Estimate
from stillhouse.data import freeze, load_frozen, load_tables
from stillhouse.models import load_model, load_tokenizer, save_model
from stillhouse.recipe import ExportStep, QuantizeStep, load_recipe
from stillhouse.store import fetch_source

STEP = QuantizeStep(name="int8", max_drop=0.01)


def drop(low: float, value: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, standard_error=0.001, n=100)


@pytest.mark.parametrize(
    ("found", "kept", "why"),
    [
        (drop(-0.02, -0.01, 0.0), True, "within 0.01"),
        (drop(0.0, 0.005, 0.01), True, "within 0.01"),
        (drop(0.0, 0.005, 0.011), False, "too uncertain to be within 0.01"),
        (drop(0.011, 0.02, 0.03), False, "more than 0.01"),
    ],
)
def test_only_an_interval_below_the_bound_keeps_a_step(found: Estimate, kept: bool, why: str) -> None:
    verdict, reason = _verdict(STEP, found, None, unit="accuracy")
    assert verdict == kept
    assert why in reason
    assert f"{found.value:.4f}" in reason


def test_an_export_must_also_predict_the_same() -> None:
    step = ExportStep(name="onnx", min_agreement=0.99)
    same = Estimate(value=0.97, low=0.95, high=0.98, standard_error=0.01, n=500)
    assert _verdict(step, drop(-0.01, 0.0, 0.0), same, unit="accuracy") == (
        False,
        "predicts the same for 97.00% only, less than 0.99",
    )
    assert _verdict(step, drop(-0.01, 0.0, 0.0), same.model_copy(update={"value": 0.99}), unit="accuracy")[0]


@pytest.fixture
def judged(tmp_path: Path) -> Any:
    recipe = load_recipe(write_workflow(tmp_path, rows=200))
    rows = load_tables(recipe.data, fetch_source)["validation"]
    freeze(rows, tmp_path / "validation.parquet")
    held = Held(rows=load_frozen(tmp_path / "validation.parquet"), sha256="0" * 64)

    def judge(before: Path, own: Path) -> Any:
        applied = Applied(did="something", rounds=1, history=None)
        folders = {"kd": before, "int8": own}
        return judge_step(recipe, STEP, applied, folders, position=1, held=held, on_progress=lambda progress: None)

    return judge


def test_a_model_loses_nothing_against_itself(judged: Any, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "other", layers=2)

    report = judged(teacher, teacher)

    assert (report.drop.value, report.score, report.kept) == (0.0, report.score_before, True)
    assert report.agreement.value == 1.0
    assert report.size == report.size_before
    assert report.size.num_bytes == (teacher / "model.safetensors").stat().st_size


def test_a_model_that_says_the_opposite_is_dropped(judged: Any, tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "other", layers=2)
    model = load_model(folder, task="text-classification", labels=LABELS)
    model.classifier.weight.data.neg_()
    model.classifier.bias.data.neg_()
    save_model(model, load_tokenizer(folder), tmp_path / "opposite")

    there, back = judged(folder, tmp_path / "opposite"), judged(tmp_path / "opposite", folder)

    assert there.agreement.value == 0.0
    assert there.drop.value == pytest.approx(-back.drop.value, abs=1e-6)
    assert there.score.value == pytest.approx(1 - there.score_before.value, abs=1e-6)
    assert not max(there, back, key=lambda report: report.drop.value).kept
