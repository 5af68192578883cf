"""What fits together in a recipe, and what does not."""

from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe import Recipe, RecipeError, parse_recipe

HERE = Path("/recipes")
HIDDEN = {"kind": "hidden"}
PATH = {"kind": "path", "path": "other"}


def parsed(document: dict[str, Any], task: str, **sections: dict[str, Any]) -> Recipe:
    """Parse the document with its labels left out for language models, and with sections changed."""
    if task != "text-classification":
        document = document | {"data": {key: value for key, value in document["data"].items() if key != "labels"}}
    changed = {name: {**document.get(name, {}), **section} for name, section in sections.items()}
    return parse_recipe(document | {"task": task} | changed, base=HERE)


@pytest.mark.parametrize("task", ["text-classification", "masked-lm", "causal-lm"])
def test_each_task_has_a_recipe(document: dict[str, Any], task: str) -> None:
    assert parsed(document, task).task == task


def test_labels_are_for_classifiers_alone(document: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="a causal-lm recipe has none"):
        parse_recipe(document | {"task": "causal-lm"}, base=HERE)
    with pytest.raises(RecipeError, match="a text-classification recipe needs labels"):
        parse_recipe(parsed(document, "causal-lm").model_dump() | {"task": "text-classification"}, base=HERE)


@pytest.mark.parametrize(
    ("task", "sections", "reason"),
    [
        ("masked-lm", {"distillation": {"on_policy": {}}}, "on_policy needs task causal-lm"),
        (
            "causal-lm",
            {"evaluation": {"generation": {"metric": "pass_at_1", "samples": 0}}},
            "metric pass_at_1 needs samples",
        ),
        ("causal-lm", {"student": {"layers": 1, "vocabulary": 100}}, "vocabulary needs task text-classification"),
        (
            "text-classification",
            {"student": {"layers": 1, "vocabulary": 100}, "distillation": {"features": [HIDDEN]}},
            "vocabulary changes the token ids",
        ),
        ("masked-lm", {"evaluation": {"harness": {"tasks": ["arc_easy"]}}}, "evaluation.harness needs task causal-lm"),
        ("causal-lm", {"evaluation": {"harness": {"tasks": ["a_b", "A-B"]}}}, "differ in their letters and digits"),
        ("causal-lm", {"evaluation": {"harness": {"tasks": ["_"]}}}, "differ in their letters and digits"),
        ("causal-lm", {"evaluation": {"harness": {"tasks": ["Here"]}}}, "suite here is one of section data"),
        ("causal-lm", {"distillation": {"divergence": "reverse-kl"}}, "infinite for sampled distributions"),
        (
            "causal-lm",
            {"distillation": {"divergence": "reverse-kl", "on_policy": {"share": 0.5}}},
            "infinite for sampled distributions",
        ),
        ("text-classification", {"distillation": {"features": [HIDDEN, HIDDEN]}}, "each kind at most once"),
        ("text-classification", {"student": {"layers": None}}, "give layers, a source, an architecture or lora"),
        ("text-classification", {"preflight": {"assistants": [3]}}, "they need teacher.finetune"),
        ("text-classification", {"preflight": {"assistants": [3, 3]}}, "assistants must be distinct"),
        ("text-classification", {"preflight": {"student_layers": [0]}}, "student_layers must be distinct"),
        (
            "text-classification",
            {"student": {"layers": None, "lora": {}}, "preflight": {"student_layers": [1]}},
            "preflight.student_layers needs a student with layers",
        ),
        (
            "text-classification",
            {"preflight": {"teachers": [{"name": "teacher", "licence": "MIT", "source": PATH}]}},
            "teachers need distinct names",
        ),
        (
            "text-classification",
            {"student": {"layers": 1, "architecture": {"hidden_size": 8}}},
            "architecture starts from random weights",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    document: dict[str, Any], task: str, sections: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason):
        parsed(document, task, **sections)


@pytest.mark.parametrize(
    ("task", "distillation"),
    [
        ("text-classification", {"divergence": "reverse-kl"}),
        ("causal-lm", {"divergence": "reverse-kl", "on_policy": {"share": 1}}),
    ],
)
def test_reverse_kl_takes_whole_distributions(
    document: dict[str, Any], task: str, distillation: dict[str, Any]
) -> None:
    assert parsed(document, task, distillation=distillation).distillation.divergence == "reverse-kl"


def test_the_cache_keeps_hidden_states_only_where_it_can_serve_all_features(document: dict[str, Any]) -> None:
    def distillation(*features: dict[str, Any]) -> Any:
        return parsed(document, "causal-lm", distillation={"features": list(features)}).distillation

    assert distillation(HIDDEN).caches_hidden
    assert not distillation(HIDDEN).needs_teacher_beside
    for features in ((HIDDEN | {"layers": "all"},), (HIDDEN, {"kind": "cka"})):
        assert not distillation(*features).caches_hidden
        assert distillation(*features).needs_teacher_beside
