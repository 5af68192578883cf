"""A toy project: a recipe, its files, and DAGs whose stages are run by `fake_stage.py`."""

import sys
from pathlib import Path

import airflow_home  # noqa: F401
import pytest
import yaml

FAKE_STAGE = Path(__file__).with_name("fake_stage.py")
TABLE = {"source": {"kind": "path", "path": "rows.csv"}, "format": "csv", "licence": "MIT", "origin": "made up"}
RECIPE = {
    "name": "toy",
    "description": "A toy workflow.",
    "task": "text-classification",
    "data": {
        "domain": "movies",
        "labels": ["negative", "positive"],
        "train": TABLE,
        "ood": [{"name": "tweets", "table": TABLE}],
    },
    "teacher": {
        "source": {"kind": "path", "path": "teacher"},
        "licence": "Apache-2.0",
        "finetune": {"epochs": 2},
        "shards": 2,
    },
    "student": {"layers": 3},
    "gate": {"policy": "policy.yaml"},
    "promotion": {"model": "toy", "approval": "auto"},
}
DAG_FILE = f"""
# An Airflow DAG file that runs fake stages.
from pathlib import Path

from stillhouse.orchestration.airflow import build_dags, recipe_folders
from stillhouse.orchestration.airflow.runtimes import local

local.local_command = lambda task: ({sys.executable!r}, {str(FAKE_STAGE)!r}, *task.arguments[1:])
globals().update(build_dags(*recipe_folders(Path(__file__).parent / "recipes")).dags)
"""


def make_project(root: Path) -> Path:
    """Make a project with one DAG, ``toy``, in ``root``."""
    recipes = root / "dags" / "recipes"
    (recipes / "teacher").mkdir(parents=True)
    (recipes / "teacher" / "config.json").write_text("{}")
    (recipes / "rows.csv").write_text("text,label\n")
    (root / "policies").mkdir()
    (root / "policies" / "toy.yaml").write_text("name: toy\n")
    document = RECIPE | {"gate": {"policy": "../../policies/toy.yaml"}}
    (recipes / "toy.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    (root / "dags" / "distillation.py").write_text(DAG_FILE)
    return root


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the folder of a project with one DAG, ``toy``."""
    return make_project(tmp_path)


@pytest.fixture
def recipe_file(project: Path) -> Path:
    """Return the toy recipe's file."""
    return project / "dags" / "recipes" / "toy.yaml"
