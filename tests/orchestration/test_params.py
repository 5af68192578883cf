from pathlib import Path

import pytest
import yaml
from airflow.sdk.definitions.param import ParamsDict
from airflow.sdk.exceptions import ParamValidationError

from stillhouse.orchestration.airflow import recipe_of_run, recipe_params
from stillhouse.orchestration.airflow.params import SECTIONS
from stillhouse.recipe import RecipeError, load_recipe


def test_form_is_the_recipe_as_written(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)

    params = ParamsDict(recipe_params(recipe)).validate()

    offered = [field for section, fields in SECTIONS.items() if section != "Synthesis" for field in fields]
    assert list(params) == offered
    assert recipe_of_run(recipe_file, params) == recipe


def test_every_field_has_a_section_a_title_and_a_type(recipe_file: Path) -> None:
    for field, param in recipe_params(load_recipe(recipe_file)).items():
        assert param.schema["section"] in SECTIONS
        assert param.schema["title"]
        assert param.schema["type"] in ("object", "string", "number", "integer")
        assert f"({field})" in str(param.description)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("distillation.alpha", 1.5),
        ("distillation.alpha", "much"),
        ("distillation.temperature", 0),
        ("training.batch_size", 0),
        ("training.batch_size", 8.5),
        ("student.layers", 0),
        ("promotion.approval", "maybe"),
        ("gate.policy", "/etc/passwd"),
    ],
)
def test_bad_value_is_refused_before_the_run(recipe_file: Path, field: str, value: object) -> None:
    params = ParamsDict(recipe_params(load_recipe(recipe_file)))

    with pytest.raises(ParamValidationError, match=field):
        params.update({field: value})


def test_the_form_offers_the_gates_policies_and_not_the_terms_policy(recipe_file: Path) -> None:
    policy = Path(load_recipe(recipe_file).gate.policy)
    for name in ("stricter.yaml", "terms.yaml"):
        (policy.parent / name).write_text("name: other\n")
    offered = recipe_params(load_recipe(recipe_file))["gate.policy"].schema["enum"]
    assert {Path(choice).name for choice in offered} >= {policy.name, "stricter.yaml"}
    assert "terms.yaml" not in {Path(choice).name for choice in offered}


def test_field_of_an_absent_section_is_not_offered(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, {"teacher.finetune": None})

    assert not any(field.startswith("teacher.finetune") for field in recipe_params(recipe))


def test_parameters_of_a_run_override_the_file(recipe_file: Path) -> None:
    recipe = recipe_of_run(recipe_file, {"distillation.alpha": 0.25, "distillation.divergence": "jsd"})

    assert recipe.distillation.alpha == 0.25
    assert recipe.distillation.divergence == "jsd"


@pytest.mark.parametrize("change", [{"teacher.shards": 5}, {"distillation.control_arm": False}])
def test_parameters_cannot_change_the_graph(recipe_file: Path, change: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="change the recipe file"):
        recipe_of_run(recipe_file, change)


def test_misspelt_parameter_is_named(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"distillation\.alhpa"):
        recipe_of_run(recipe_file, {"distillation.alhpa": 0.5})


def test_form_of_a_teacher_that_writes_offers_how_it_writes(recipe_file: Path) -> None:
    document = yaml.safe_load(recipe_file.read_text())
    data = document["data"] | {"train": document["data"]["train"] | {"prompt_column": "question"}}
    writing = {
        "task": "causal-lm",
        "data": {name: value for name, value in data.items() if name != "labels"},
        "distillation": {"alpha": 1.0},
        "synthesis": {"kind": "traces", "samples": 3},
    }
    recipe_file.write_text(yaml.safe_dump(document | writing))

    form = recipe_params(load_recipe(recipe_file))

    assert form["synthesis.samples"].value == 3
    assert form["synthesis.samples"].schema["maximum"] == 1024
    assert form["synthesis.temperature"].schema["section"] == "Synthesis"
