from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.recipe import Recipe, RecipeError, load_recipe, parse_recipe

HERE = Path("/recipes")


def test_a_minimal_recipe_gets_production_defaults(document: dict[str, Any]) -> None:
    recipe = parse_recipe(document, base=HERE)
    assert recipe.promotion.approval == "human"
    assert recipe.distillation.arms == ("kd", "sft")
    assert recipe.data.splits.test == 0.15


def test_paths_are_relative_to_the_recipe_file(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(document))
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.data.train.source.path == str(tmp_path / "data.csv")  # type: ignore[union-attr]
    assert recipe.teacher.source.path == str(tmp_path / "teacher")  # type: ignore[union-attr]
    assert recipe.gate.policy == str(tmp_path / "policy.yaml")


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("colour", "red", "colour"),
        ("student.colour", "red", "student.colour"),
        ("student.layers", "many", "student.layers"),
        ("student.layers", 0, "student.layers"),
        ("student.layer_map", [0], "student"),
        ("student.layer_map", [2, 1], "student"),
        ("distillation.alpha", 1.5, "distillation.alpha"),
        ("distillation.alpha", float("nan"), "distillation.alpha"),
        ("distillation.temperature", 0, "distillation.temperature"),
        ("distillation.temperature", float("inf"), "distillation.temperature"),
        ("data.labels", ["no"], "data.labels"),
        ("data.labels", ["no", "no"], "data"),
        ("data.labels", [False, True], "data.labels.0"),
        ("data.train.format", "xlsx", "data.train.format"),
        ("data.splits.test", 0.5, "data.splits.test"),
        ("data.train.label_rule", {"kind": "regex"}, "data.train.label_rule"),
        ("teacher.source", {"kind": "hub", "repo": "a/b", "revision": "main"}, "teacher.source.hub.revision"),
        ("teacher.shards", 0, "teacher.shards"),
        ("name", "Not A Name", "name"),
        ("schedule.cron", "daily", "schedule"),
    ],
)
def test_a_bad_field_is_named_on_one_line(document: dict[str, Any], field: str, value: object, named: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(document, base=HERE, overrides={field: value})
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_may_be_a_secret_is_not_repeated(document: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(document, base=HERE, overrides={"student.layers": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_thresholds_need_two_labels(document: dict[str, Any]) -> None:
    overrides = {"data.labels": ["a", "b", "c"], "data.train.label_rule": {"kind": "threshold"}}
    with pytest.raises(RecipeError, match="exactly two labels"):
        parse_recipe(document, base=HERE, overrides=overrides)


def test_more_shards_than_rows_are_refused(document: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="shards"):
        parse_recipe(document, base=HERE, overrides={"teacher.shards": 5, "data.train.max_rows": 4})


def test_two_sets_of_one_name_are_refused(document: dict[str, Any]) -> None:
    ood = {"name": "here", "table": document["data"]["train"]}
    with pytest.raises(RecipeError, match="distinct names"):
        parse_recipe(document, base=HERE, overrides={"data.ood": [ood]})


def test_overrides_replace_by_dotted_name_and_leave_the_rest(document: dict[str, Any]) -> None:
    overrides = {"distillation.alpha": 0.25, "training.epochs": 1, "teacher.finetune.epochs": 2}
    recipe = parse_recipe(document, base=HERE, overrides=overrides)
    assert recipe.distillation.alpha == 0.25
    assert recipe.training.epochs == 1
    assert recipe.teacher.finetune is not None
    assert recipe.model_copy(update={"distillation": None, "training": None, "teacher": None}) == parse_recipe(
        document, base=HERE
    ).model_copy(update={"distillation": None, "training": None, "teacher": None})
    assert "distillation" not in document


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: no such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(tmp_path)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "", "a: !!python/object:os.system {}", "\tx: 1"])
def test_what_is_not_a_mapping_in_yaml_is_refused_on_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


def test_a_yaml_error_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: x\ndata: [1\ngate: {}\n")
    with pytest.raises(RecipeError, match="line 3"):
        load_recipe(tmp_path / "r.yaml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError, match="can't be read"):
        load_recipe(tmp_path / "r.yaml")


def test_a_validated_recipe_survives_the_journey_as_plain_data(document: dict[str, Any]) -> None:
    recipe = parse_recipe(document, base=HERE)
    assert parse_recipe(recipe.model_dump(mode="json"), base=Path("/elsewhere")) == recipe


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_alpha_is_accepted_exactly_between_0_and_1(alpha: float) -> None:
    from stillhouse.recipe import DistillationConfig

    try:
        DistillationConfig(alpha=alpha)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == (0 <= alpha <= 1)


def test_every_field_is_described_in_the_schema() -> None:
    schema = Recipe.model_json_schema()
    required = {"name", "description", "task", "data", "teacher", "student", "gate", "promotion"}
    assert set(schema["required"]) == required
    assert schema["additionalProperties"] is False
    assert "description" in schema["$defs"]["DistillationConfig"]["properties"]["alpha"]
