"""Which compression steps can follow one another, and what they must say."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe import Recipe, RecipeError, TrainingConfig, parse_recipe

DEPTH = {"kind": "prune-depth", "name": "half", "layers": 1}
WIDTH = {"kind": "prune-width", "name": "narrow", "target": {"share": 0.5}}
TRIM = {"kind": "trim-vocabulary", "name": "trimmed"}
RANK = {"kind": "low-rank", "name": "thin", "energy": 0.9}
INT8 = {"kind": "quantize", "name": "int8"}
ONNX = {"kind": "export", "name": "onnx"}
HEAL: dict[str, Any] = {"heal": {"epochs": 1}}


def parsed(document: dict[str, Any], *steps: dict[str, Any], **changes: Any) -> Recipe:
    return parse_recipe(document | {"compression": list(steps)} | changes, base=Path("/recipes"))


def test_a_whole_chain_is_read_in_its_order(document: dict[str, Any]) -> None:
    recipe = parsed(document, DEPTH | HEAL, WIDTH, TRIM, RANK, INT8, ONNX)

    assert [step.name for step in recipe.compression] == ["half", "narrow", "trimmed", "thin", "int8", "onnx"]
    assert [step.form for step in recipe.compression][-3:] == ["low-rank", "quantized", "onnx"]
    assert [step.distils for step in recipe.compression] == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([DEPTH, DEPTH], "distinct names"),
        ([INT8 | {"name": "teacher"}], "none of them one of teacher"),
        ([INT8, DEPTH], "compression.half changes weights, which int8 has fixed"),
        ([RANK, TRIM], "compression.trimmed changes weights, which thin has fixed"),
        ([DEPTH | {"layers": None}], "give either layers or target"),
        ([DEPTH | {"target": {"share": 0.5}}], "give either layers or target"),
        ([WIDTH | {"heads": 2}], "give either sizes"),
        ([RANK | {"share": 0.5}], "give either energy or share"),
        ([{"kind": "sparsify", "name": "zeros", "pattern": "2:4", "share": 0.6}], "pattern 2:4 has share 0.5"),
        ([INT8 | {"heal": {"lora": {"rank": 4}}}], "trains the weights that it changes"),
        ([DEPTH | {"name": "Half"}], "half|pattern"),
        ([{"kind": "prune", "name": "x"}], "kind|tag"),
    ],
)
def test_what_does_not_fit_is_refused(document: dict[str, Any], steps: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        parsed(document, *steps)


def test_other_tokens_end_what_a_teacher_can_be_compared_by(document: dict[str, Any]) -> None:
    hidden = {"distillation": {"features": [{"kind": "hidden"}]}}
    language = {"task": "causal-lm", "data": {k: v for k, v in document["data"].items() if k != "labels"}}
    sft = {"heal": {"signal": "sft"}}

    parsed(document, TRIM, WIDTH | HEAL)
    parsed(document, WIDTH | HEAL, TRIM, **hidden)
    parsed(document, TRIM, WIDTH | sft, **language)
    for changes in (hidden, language):
        with pytest.raises(RecipeError, match="can't learn from a teacher with other tokens; put it before trimmed"):
            parsed(document, TRIM, WIDTH | HEAL, **changes)


def test_only_classifiers_are_exported(document: dict[str, Any]) -> None:
    language = {"task": "causal-lm", "data": {k: v for k, v in document["data"].items() if k != "labels"}}
    with pytest.raises(RecipeError, match="only classifiers are exported; quantize a language model"):
        parsed(document, ONNX, **language)


def test_healing_keeps_what_it_does_not_name(document: dict[str, Any]) -> None:
    (step,) = parsed(document, DEPTH | {"heal": {"epochs": 2, "learning_rate": 1e-3}}).compression
    base = TrainingConfig(batch_size=7, max_tokens=24, validation_points=3)

    healed = step.heal.applied_to(base)  # type: ignore[union-attr]

    assert (healed.epochs, healed.learning_rate, healed.batch_size, healed.max_tokens) == (2, 1e-3, 7, 24)
    assert healed.validation_points == 0, "a chain is judged by its gate, not by curves on the same set"
