"""`stillhouse report`: a run found again in the store, and told as at its end."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from findings import TIMINGS, classified, make_decision
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.contract import (
    ConfigurationError,
    DataRejected,
    ExitCode,
    IntegrityError,
    ResultRef,
    StageResult,
    TaskRecord,
    TryAgain,
    pretty_json,
    sha256_of,
)
from stillhouse.orchestration.outcome import show_outcome
from stillhouse.orchestration.reading import find_run, read_run, report_page
from stillhouse.stages.records import record_key
from stillhouse.store import ObjectStore, open_store, save_bytes

PAGE = b"<!doctype html><title>a report</title>"
MORNING = datetime(2026, 1, 2, 8, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


def put_result(store: ObjectStore, stage: Any, outputs: dict[str, bytes]) -> ResultRef:
    """Store a result with these outputs, as a stage does."""
    result = StageResult(
        stage=stage,
        key="0" * 64,
        outputs={name: save_bytes(store, f"stages/{stage}/{name}", data) for name, data in outputs.items()},
        summary="done",
        started_at=MORNING,
        finished_at=MORNING,
        seconds=1.0,
        cpu_seconds=1.0,
        peak_memory_bytes=1,
        code_version="0" * 64,
    )
    document = pretty_json(result)
    store.put(f"stages/{stage}/result.json", document)
    return ResultRef(uri=store.uri(f"stages/{stage}/result.json"), sha256=sha256_of(document))


def put_record(store: ObjectStore, run_id: str, task: Any, state: Any = "succeeded", **changes: Any) -> None:
    record = TaskRecord(run_id=run_id, task_id=task, stage=task, state=state, updated_at=MORNING)
    store.put(record_key(run_id, task), pretty_json(record.replace(**changes)))


def put_run(store: ObjectStore, run_id: str, *, hour: int = 0) -> None:
    """Record a run that came to a verdict, begun at this hour after the morning."""
    summary = classified()
    evaluated = put_result(store, "evaluate", {"summary": pretty_json(summary), "timings": pretty_json(TIMINGS)})
    decided = put_result(store, "decide", {"decision": pretty_json(make_decision(summary)), "report": PAGE})
    put_record(store, run_id, "validate", updated_at=MORNING + timedelta(hours=hour))
    put_record(store, run_id, "evaluate", result=evaluated)
    put_record(store, run_id, "decide", result=decided)


def test_a_run_is_found_by_its_id_its_beginning_and_its_time(store: ObjectStore) -> None:
    put_run(store, "films-20260102", hour=2)
    put_run(store, "films-20260103", hour=5)
    put_run(store, "words-20260101", hour=3)
    assert find_run(store, "films-20260102") == "films-20260102"
    assert find_run(store, "words") == "words-20260101"
    assert find_run(store, "latest") == "films-20260103"


def test_an_id_that_begins_another_id_is_still_found(store: ObjectStore) -> None:
    put_run(store, "films")
    put_run(store, "films-2")
    assert find_run(store, "films") == "films"


def test_an_ambiguous_beginning_names_the_runs(store: ObjectStore) -> None:
    put_run(store, "films-1")
    put_run(store, "films-2")
    with pytest.raises(ConfigurationError, match="begins 2 runs; write more of one, such as films-1, films-2"):
        find_run(store, "films")


def test_an_unknown_run_is_answered_with_known_ones(store: ObjectStore) -> None:
    with pytest.raises(ConfigurationError, match="the last by name: none"):
        find_run(store, "films")
    with pytest.raises(ConfigurationError, match="start one with"):
        find_run(store, "latest")
    put_run(store, "words-1")
    with pytest.raises(ConfigurationError, match="the last by name: words-1"):
        find_run(store, "films")


def test_a_run_without_a_verdict_says_where_it_is(store: ObjectStore) -> None:
    put_record(store, "films", "validate")
    put_record(store, "films", "evaluate", "running")
    with pytest.raises(TryAgain, match=r"no verdict yet \(evaluate at work\)"):
        read_run(store, "films")
    put_record(store, "films", "evaluate", "failed", message="scores of 3 items are NaN")
    with pytest.raises(DataRejected, match="failed in evaluate, so there is no verdict: scores of 3 items are NaN"):
        read_run(store, "films")


def test_a_page_that_was_changed_is_refused(store: ObjectStore) -> None:
    put_run(store, "films")
    store.put("stages/decide/result.json", b"{}")
    with pytest.raises(IntegrityError):
        report_page(read_run(store, "films"))


def test_a_result_of_another_version_is_refused_in_one_line(store: ObjectStore) -> None:
    put_run(store, "films")
    old = put_result(store, "evaluate", {"summary": b'{"schema_id": "stillhouse/evaluation/1"}', "timings": b"{}"})
    put_record(store, "films", "evaluate", result=old)
    with pytest.raises(DataRejected, match="written by another version of Stillhouse"):
        show_outcome(read_run(store, "films"))


def test_the_command_prints_the_end_of_the_run_and_copies_the_page(store: ObjectStore, tmp_path: Path) -> None:
    put_run(store, "films-1")
    copy = tmp_path / "copy.html"
    told = CliRunner().invoke(app, ["report", "films", "--store", str(tmp_path / "store"), "--html", str(copy)])
    assert told.exit_code == ExitCode.OK, told.output
    for part in ("films-1", "REJECT", "97.8 ±2.1 %", "94.6 ±2.1 % worst", store.uri("stages/decide/report"), str(copy)):
        assert part in told.output
    assert copy.read_bytes() == PAGE


def test_a_copy_that_cannot_be_written_is_a_configuration_error(store: ObjectStore, tmp_path: Path) -> None:
    put_run(store, "films")
    arguments = ["report", "films", "--store", str(tmp_path / "store"), "--html", str(tmp_path / "no" / "copy.html")]
    assert isinstance(CliRunner().invoke(app, arguments).exception, ConfigurationError)
