"""The stage that checks and freezes the data, on a recipe with every kind of set."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import SHIFTED, write_csv

from stillhouse.contract import DataRejected, StageRequest, StageResult
from stillhouse.data import ValidationReport, load_frozen
from stillhouse.recipe import load_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.records import read_result


@pytest.fixture
def recipe(workflow: Path) -> Path:
    """Add a reference, a group column, a set out of scope and two perturbations to the recipe of `workflow`."""
    document = yaml.safe_load(workflow.read_text())
    data = document["data"]
    write_csv(workflow.parent / "deployment.csv", rows=150, seed=5)
    write_csv(workflow.parent / "scope.csv", rows=60, seed=6, filler=SHIFTED)
    films, data["ood"][0]["table"]["group_column"] = data["train"], "label"
    reference, scope = ({**films, "source": {"kind": "path", "path": f"{n}.csv"}} for n in ("deployment", "scope"))
    data["ood"].append({"name": "scope", "kind": "out-of-scope", "table": scope})
    data["perturbations"] = [{"name": "typed", "kind": "typos"}, {"name": "loud", "kind": "case", "strength": 1}]
    data["coverage"] = {"reference": reference}
    workflow.write_text(yaml.safe_dump(document))
    return workflow


def _run(recipe: Path, tmp_path: Path, **overrides: Any) -> StageResult:
    request = StageRequest(
        stage="validate",
        run_id="run-1",
        task_id="validate",
        recipe=load_recipe(recipe, overrides).model_dump(mode="json"),
        store=f"file://{tmp_path / 'store'}",
    )
    return read_result(run_stage(request, work=tmp_path / "work"))


def _path(result: StageResult, name: str) -> Path:
    return Path(result.outputs[name].uri.removeprefix("file://"))


def test_every_set_is_frozen_and_the_reference_is_not(recipe: Path, tmp_path: Path) -> None:
    result = _run(recipe, tmp_path)
    sets = ["train", "validation", "test", "ood-goods", "ood-scope", "perturbed-typed", "perturbed-loud"]
    assert set(result.outputs) == {*sets, "report", "docs"}
    rows = {name: load_frozen(_path(result, name)) for name in sets}
    assert rows["ood-scope"].column_names == ["id", "text"]
    assert rows["ood-goods"].column_names == ["id", "text", "label", "group"]
    for name in ("perturbed-typed", "perturbed-loud"):
        assert rows[name]["id"][:] == rows["test"]["id"][:]
        assert rows[name]["label"][:] == rows["test"]["label"][:]
        assert rows[name]["text"][:] != rows["test"]["text"][:]
    report = ValidationReport.model_validate_json(_path(result, "report").read_bytes())
    assert [(check.name, check.outcome) for check in report.integrity] == [
        ("leakage", "pass"),
        ("contamination", "pass"),
        ("coverage", "pass"),
    ]
    removed = sum(lost.contaminated for lost in report.dropped.values())
    assert result.metrics["contaminated.removed"] == removed
    assert result.metrics["contaminated.left"] == 0
    assert result.metrics["coverage.auroc"] == report.coverage["auroc"].value
    assert sum(len(rows[name]) for name in ("train", "validation", "test")) == 600 - removed


def test_a_missed_bound_of_coverage_stops_the_run_and_leaves_the_report(recipe: Path, tmp_path: Path) -> None:
    (recipe.parent / "deployment.csv").write_text((recipe.parent / "goods.csv").read_text())
    with pytest.raises(DataRejected, match=r"^train: a share of 0\.\d+ of the reference texts is covered, below 0\.95"):
        _run(recipe, tmp_path, **{"data.coverage.min_coverage": 0.95})
    [report] = (tmp_path / "store").glob("stages/validate/*/report.json")
    integrity = ValidationReport.model_validate_json(report.read_bytes()).integrity
    assert [check.outcome for check in integrity] == ["pass", "pass", "fail"]
    assert not list((tmp_path / "store").glob("stages/validate/*/train.parquet"))
