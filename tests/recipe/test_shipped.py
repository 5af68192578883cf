import csv
from pathlib import Path

import pytest
import yaml

from stillhouse.recipe import PathSource, ReasoningSource, RecipeError, WheelSource, load_recipe, new_recipe
from stillhouse.recipe.synthesis import TextbookConfig

RECIPES = Path(__file__).parents[2] / "dags" / "recipes"
NAMES = (
    "editorials",
    "quickstart",
    "compressed",
    "questions",
    "questions-fine",
    "distilbert",
    "distilbert-sentiment",
    "tinyllama",
    "phi",
    "deepseek-r1",
    "step-by-step",
)


def test_the_shipped_recipes_are_the_ones_we_know() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_loads_and_is_named_like_its_file(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.name == name
    assert Path(recipe.gate.policy).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_needs_nothing_but_pinned_packages_and_what_lies_beside_it(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    models = [recipe.teacher.source or recipe.student.source]
    for source in [*models, *(table.source for table in recipe.data.named_tables().values())]:
        if isinstance(source, PathSource):
            assert Path(source.path).parent == RECIPES
        else:
            assert isinstance(source, WheelSource | ReasoningSource)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_promotes_into_a_model_of_its_own(name: str) -> None:
    models = {other: load_recipe(RECIPES / f"{other}.yaml").promotion.model for other in NAMES}
    assert list(models.values()).count(models[name]) == 1


def test_the_topics_are_distinct_and_phi_asks_about_each_of_them_equally_often() -> None:
    recipe = load_recipe(RECIPES / "phi.yaml")
    assert isinstance(recipe.synthesis, TextbookConfig)
    topics = list(csv.DictReader((RECIPES / "topics.csv").open(encoding="utf-8")))
    assert len({row["id"] for row in topics}) == len({row["topic"] for row in topics}) == len(topics) == 80
    assert recipe.synthesis.passages % len(topics) == 0


def test_the_coarse_question_labels_are_the_prefixes_of_the_fine_ones() -> None:
    coarse = load_recipe(RECIPES / "questions.yaml").data.labels
    fine = load_recipe(RECIPES / "questions-fine.yaml").data.labels
    assert {label.split(":")[0] for label in fine} == set(coarse)
    assert len(fine) == 50


@pytest.mark.parametrize("name", ["churn", "null", "on", "a" * 63, "v2-beta-3"])
def test_a_new_recipe_loads_and_keeps_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(new_recipe(name))
    recipe = load_recipe(path)
    assert (recipe.name, recipe.promotion.model, recipe.promotion.approval) == (name, name, "human")
    assert recipe.data.train.source.path == str(tmp_path / "data.csv")  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["my data.csv", 'a "b": #c.csv', "@NAME@/x.csv", "ü/\\n.csv"])
def test_a_new_recipe_takes_any_path(tmp_path: Path, path: str) -> None:
    document = yaml.safe_load(new_recipe("churn", data=path, teacher=path, policy=path))
    assert document["data"]["train"]["source"]["path"] == path
    assert document["teacher"]["source"]["path"] == path
    assert document["gate"]["policy"] == path


@pytest.mark.parametrize("name", ["", "Churn", "a b", "a--b", "1a", "a" * 64, "a\nb: c"])
def test_a_new_recipe_refuses_a_name_that_is_none(name: str) -> None:
    with pytest.raises(RecipeError, match="lower-case"):
        new_recipe(name)
