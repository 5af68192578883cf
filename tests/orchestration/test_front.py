"""All runs on one test set side by side."""

from pathlib import Path
from typing import Any

import pytest
from findings import TIMINGS, classified, language
from rich.console import Console

from stillhouse.contract import EvaluationSummary, ResultRef, StageResult, TaskRecord, pretty_json, sha256_of
from stillhouse.orchestration.front import gather, render
from stillhouse.store import ObjectStore, open_store, save_bytes

NOW = "2026-01-01T00:00:00Z"


def put_run(store: ObjectStore, run_id: str, summary: EvaluationSummary, **timing: Any) -> None:
    """Store what a run leaves behind that was measured."""
    fast = TIMINGS.models["kd"].model_copy(update=timing)
    timings = TIMINGS.model_copy(update={"models": {**TIMINGS.models, "kd": fast}})
    outputs = {
        name: save_bytes(store, f"stages/evaluate/{run_id}/{name}.json", pretty_json(document))
        for name, document in {"summary": summary, "timings": timings}.items()
    }
    result = StageResult(
        stage="evaluate", key="0" * 64, outputs=outputs, summary="done", started_at=NOW, finished_at=NOW, seconds=1,
        cpu_seconds=1, peak_memory_bytes=1, code_version="0" * 64,
    )  # fmt: skip
    key = f"stages/evaluate/{run_id}/result.json"
    store.put(key, pretty_json(result))
    record = TaskRecord(
        run_id=run_id, task_id="evaluate", stage="evaluate", state="succeeded", updated_at=NOW,
        result=ResultRef(uri=store.uri(key), sha256=sha256_of(pretty_json(result))),
    )  # fmt: skip
    store.put(f"runs/{run_id}/tasks/evaluate.json", pretty_json(record))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path / 'store'}")


def test_a_model_that_another_run_beats_in_both_is_not_on_the_front(store: ObjectStore) -> None:
    summary = classified()
    put_run(store, "old", summary)
    put_run(store, "small", summary, num_bytes=1_000_000, latency_p50_ms=0.5)

    points = gather(store, summary.suites[0])
    console = Console(width=140, record=True)
    console.print(render(points, summary.suites[0]))
    lines = {tuple(line.split()[1:5:2]): line for line in console.export_text().splitlines() if "│" in line}

    assert len([point for point in points if point.model == "kd"]) == 2, "one of each size"
    assert len([point for point in points if point.model == "teacher"]) == 1, "measured once, shown once"
    assert "start" not in {point.model for point in points}
    assert lines[("small", "kd")].count("★") == 2
    assert "★" not in lines[("old", "kd")]
    assert lines[("old", "teacher")].count("★") == 2, "nothing is as good"


def test_other_test_sets_and_damaged_runs_are_no_part_of_it(store: ObjectStore) -> None:
    summary = classified()
    put_run(store, "mine", summary)
    moved = summary.suites[0].model_copy(update={"items_sha256": "9" * 64})
    put_run(store, "other", summary.model_copy(update={"suites": (moved, *summary.suites[1:])}), num_bytes=1)
    put_run(store, "words", language(), num_bytes=2)
    put_run(store, "lost", summary, num_bytes=3)
    store.delete("stages/evaluate/lost/summary.json")

    assert {point.run_id for point in gather(store, summary.suites[0])} == {"mine"}
