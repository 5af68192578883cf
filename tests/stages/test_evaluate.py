"""The stage that measures, on slices from the table to the summary."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from tiny import write_teacher

from stillhouse.contract import DataRejected, EvaluationSummary, StageRequest, StageResult, Timings
from stillhouse.data import load_frozen
from stillhouse.evaluation import read_records
from stillhouse.evaluation.timing import LATENCY_SCHEMA
from stillhouse.recipe import load_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.records import read_result
from stillhouse.store import open_store, save_tree

GENRES = ("drama", "war", "")


@pytest.fixture
def recipe(workflow: Path) -> Path:
    """Give the rows of the training table a genre, not all of them, and one perturbation to the recipe."""
    table = workflow.parent / "films.csv"
    header, *rows = table.read_text().splitlines()
    rows = [f"{row},{GENRES[number % 3]},{number}" for number, row in enumerate(rows)]
    table.write_text("\n".join([f"{header},genre,number", *rows]) + "\n")
    document = yaml.safe_load(workflow.read_text())
    document["data"]["train"]["slice_columns"] = ["genre"]
    document["data"]["perturbations"] = [{"name": "loud", "kind": "case", "strength": 1}]
    document["evaluation"]["seed"] = 77
    workflow.write_text(yaml.safe_dump(document))
    return workflow


def _run(recipe: Path, root: Path, stage: str, **given: Any) -> StageResult:
    request = StageRequest(
        stage=stage,
        run_id="run-1",
        task_id=stage,
        recipe=load_recipe(recipe).model_dump(mode="json"),
        store=f"file://{root / 'store'}",
        **given,
    )
    return read_result(run_stage(request, work=root / "work"))


def _path(result: StageResult, name: str) -> Path:
    return Path(result.outputs[name].uri.removeprefix("file://"))


def test_slices_reach_records_and_summary_and_every_latency_is_kept(recipe: Path, tmp_path: Path) -> None:
    validated = _run(recipe, tmp_path, "validate")
    sets = {name: validated.outputs[name] for name in ("test", "ood-goods", "perturbed-loud")}
    store = open_store(f"file://{tmp_path / 'store'}")
    folders = {name: write_teacher(tmp_path / name, seed=number) for number, name in enumerate(("teacher", "kd"))}
    models = {name: save_tree(store, f"given/{name}", folder) for name, folder in folders.items()}
    found = _run(recipe, tmp_path, "evaluate", inputs=sets | models)
    assert set(found.outputs) == {"records", "summary", "timings", "latencies"}

    frozen = load_frozen(_path(validated, "test"))
    assert frozen.column_names == ["id", "text", "label", "slice:genre"]
    genre_of = dict(zip(frozen["id"], frozen["slice:genre"], strict=True))
    assert genre_of == {row: GENRES[int(row[1:]) % 3] for row in genre_of}
    records = read_records(_path(found, "records"))
    assert pc.unique(records["seed"]).to_pylist() == [77]
    for suite in ("films", "loud"):
        rows = records.filter(pc.field("suite") == suite)
        expected = [[f"genre={genre}"] if (genre := genre_of[row]) else [] for row in rows["item_id"].to_pylist()]
        assert rows["slices"].to_pylist() == expected
    goods = records.filter(pc.field("suite") == "goods")
    assert not any(goods["slices"].to_pylist())

    summary = EvaluationSummary.model_validate_json(_path(found, "summary").read_bytes())
    for suite in summary.suites:
        for model, scores in suite.models.items():
            assert list(scores.per_slice) == ([] if suite.name == "goods" else ["genre=drama", "genre=war"])
            rows = records.filter((pc.field("suite") == suite.name) & (pc.field("model") == model)).to_pylist()
            for name, figure in scores.per_slice.items():
                right = [row["correct"] for row in rows if row["slices"] == [name]]
                assert (figure.value, figure.n) == (pytest.approx(np.mean(right)), len(right))

    latencies = pq.read_table(_path(found, "latencies"))
    assert latencies.schema.equals(LATENCY_SCHEMA, check_metadata=True)
    timings = Timings.model_validate_json(_path(found, "timings").read_bytes())
    assert latencies["item"].to_pylist() == [*range(timings.num_items)] * len(timings.models)


def test_a_column_of_measurements_stops_validate_and_is_named(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("- genre\n", "- number\n"))
    with pytest.raises(DataRejected, match=r"^validation: column 'number' has \d+ distinct values, more than 50; put"):
        _run(recipe, tmp_path, "validate")
