from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe import Recipe, RecipeError, parse_recipe

TABLE = {"source": {"kind": "path", "path": "/rows.csv"}, "format": "csv", "licence": "MIT", "origin": "made up"}
SERVER: dict[str, Any] = {
    "api": {"base_url": "https://api.example.com/v1", "model": "big", "key": "env:BIG_KEY"},
    "licence": "proprietary",
    "terms": {"provider": "openai"},
}


def recipe(**sections: Any) -> Recipe:
    base = {
        "name": "toy",
        "description": "A toy workflow.",
        "task": "causal-lm",
        "data": {"domain": "sums", "train": TABLE | {"prompt_column": "question"}},
        "teacher": {"source": {"kind": "path", "path": "/teacher"}, "licence": "MIT"},
        "student": {"layers": 3},
        "synthesis": {"kind": "traces"},
        "distillation": {"alpha": 1.0},
        "gate": {"policy": "/policy.yaml"},
        "promotion": {"model": "toy"},
    }
    return parse_recipe(base | sections, base=Path("/"))


def test_arms_follow_the_controls() -> None:
    assert recipe().arms == ("kd", "unfiltered")
    assert recipe(synthesis={"kind": "rationales"}).arms == ("kd", "sft")
    assert recipe(synthesis=None).arms == ("kd", "sft")


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"task": "masked-lm"}, "synthesis needs task causal-lm"),
        ({"data": {"domain": "sums", "train": TABLE}}, "data.train.prompt_column"),
        ({"synthesis": {"kind": "textbook"}}, "data.train.prompt_column"),
        ({"distillation": {"alpha": 0.5}}, "distillation.alpha must be 1"),
        ({"distillation": {"alpha": 1, "on_policy": {}}}, "distillation.features and on_policy"),
        ({"synthesis": None, "teacher": SERVER, "student": {"source": {"kind": "path", "path": "/s"}}}, "teacher.api"),
        ({"teacher": SERVER}, "student.source"),
        ({"teacher": SERVER | {"terms": {}}}, "terms.provider"),
        ({"teacher": {"licence": "MIT"}}, "give either source or api"),
        ({"teacher": SERVER | {"finetune": {}}}, "finetune needs weights"),
        ({"teacher": SERVER | {"precision": "bfloat16"}}, "precision needs weights"),
        ({"synthesis": {"kind": "traces", "prompt": "Solve it."}}, "prompt must hold {problem}"),
        ({"synthesis": {"kind": "traces", "temperature": 0}}, "set samples to 1"),
        ({"synthesis": {"kind": "textbook", "controls": ["sft"]}}, "there is no sft"),
    ],
)
def test_what_does_not_fit_is_named(sections: dict[str, Any], field: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(**sections)
    assert field in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["sk-123456", "env:", "file:relative"])
def test_key_is_a_reference_and_never_the_key(key: str) -> None:
    with pytest.raises(RecipeError, match=r"api\.key"):
        recipe(
            teacher=SERVER | {"api": SERVER["api"] | {"key": key}}, student={"source": {"kind": "path", "path": "/"}}
        )


def test_address_holds_no_credentials() -> None:
    with pytest.raises(RecipeError, match="base_url"):
        recipe(teacher=SERVER | {"api": {"base_url": "https://me:secret@example.com/v1", "model": "m"}})


def test_server_is_named_by_model_and_host() -> None:
    served = recipe(teacher=SERVER, student={"source": {"kind": "path", "path": "/s"}})

    assert served.teacher.title == "big at api.example.com"
    with pytest.raises(ValueError, match="is a server"):
        _ = served.teacher.weights


def test_answers_of_a_server_may_carry_probabilities() -> None:
    graybox = SERVER | {"api": SERVER["api"] | {"top_logprobs": 5}}
    served = recipe(teacher=graybox, student={"source": {"kind": "path", "path": "/s"}}, distillation={"alpha": 0.3})

    assert served.imitates_distributions
    assert not recipe().imitates_distributions
    assert recipe(synthesis=None, distillation={"alpha": 0.3}).imitates_distributions
