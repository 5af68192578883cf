"""One stage: results before records, reuse, failure on one line. The stage that runs here is a small real one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from servers import Server, mlflow_server
from tiny import write_teacher

from stillhouse.contract import ConfigurationError, StageRequest, StageResult, TaskRecord, TryAgain
from stillhouse.data import freeze
from stillhouse.recipe import load_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.catalog import find_reusable, key_of, result_key
from stillhouse.stages.records import read_records, read_result
from stillhouse.store import open_store, save_file, save_tree


@pytest.fixture
def request_(workflow: Path, tmp_path: Path) -> StageRequest:
    """Ask for the student of a small teacher."""
    root = f"file://{tmp_path / 'store'}"
    teacher = save_tree(open_store(root), "given/teacher", write_teacher(tmp_path / "given"))
    freeze(pd.DataFrame({"id": ["a"], "text": ["good film"], "label": [1]}), tmp_path / "train.parquet")
    train = save_file(open_store(root), "given/train.parquet", tmp_path / "train.parquet")
    return StageRequest(
        stage="initialise",
        run_id="run-1",
        task_id="initialise",
        recipe=load_recipe(workflow).model_dump(mode="json"),
        inputs={"teacher": teacher, "train": train},
        store=root,
    )


def record_of(request: StageRequest) -> TaskRecord:
    return read_records(open_store(request.store), request.run_id)[request.task_id]


def changed(request: StageRequest, **changes: Any) -> StageRequest:
    return request.model_copy(update=changes)


def test_a_stage_leaves_a_result_whose_reference_verifies(request_: StageRequest, tmp_path: Path) -> None:
    result = read_result(run_stage(request_, work=tmp_path / "work"))
    assert result.key == key_of(request_)
    assert result.outputs.keys() == {"model"}
    assert result.seconds > 0
    assert result.peak_memory_bytes > 0
    assert record_of(request_).state == "succeeded"
    assert not (tmp_path / "work" / "initialise" / result.key).exists()


def test_a_result_says_how_long_accelerators_were_held(
    request_: StageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.stages.runner.accelerators", lambda: 4)
    result = read_result(run_stage(request_, work=tmp_path / "work"))
    assert result.device_seconds == 4 * result.seconds


def test_the_same_request_of_another_run_reuses_the_result(request_: StageRequest, tmp_path: Path) -> None:
    first = run_stage(request_, work=tmp_path / "work")
    second = changed(request_, run_id="run-2")
    assert run_stage(second, work=tmp_path / "work") == first
    assert record_of(second).state == "reused"
    assert first.uri.rsplit("/", 2)[1][:12] in record_of(second).message


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble-result"])
def test_a_damaged_result_is_not_reused(request_: StageRequest, tmp_path: Path, damage: str) -> None:
    run_stage(request_, work=tmp_path / "work")
    weights = next((tmp_path / "store").glob("stages/initialise/*/model/model.safetensors"))
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        weights.unlink()
    else:
        (weights.parents[1] / "result.json").write_text("{}")
    assert find_reusable(request_) is None
    assert read_result(run_stage(request_, work=tmp_path / "work")).outputs


def test_a_refusal_is_recorded_on_one_line_with_its_exit_code(request_: StageRequest, tmp_path: Path) -> None:
    deep = dict(request_.recipe) | {"student": {"layers": 9}}
    with pytest.raises(ConfigurationError):
        run_stage(changed(request_, recipe=deep), work=tmp_path / "work")
    record = record_of(request_)
    assert (record.state, record.exit_code) == ("failed", 78)
    assert "\n" not in record.message
    assert record.result is None


def test_an_unexpected_error_is_recorded_by_type_alone(
    request_: StageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stillhouse.stages.initialise as stage

    def fail(context: object) -> None:
        raise KeyError("a text of a user")

    monkeypatch.setattr(stage, "run", fail)
    with pytest.raises(KeyError):
        run_stage(request_, work=tmp_path / "work")
    assert "KeyError" in record_of(request_).message
    assert "user" not in record_of(request_).message
    assert record_of(request_).exit_code == 70


def _refuse_memory() -> None:
    raise MemoryError


def _refuse_memory_like_torch() -> None:
    import torch

    torch.empty(1 << 50)


@pytest.mark.parametrize("allocate", [_refuse_memory, _refuse_memory_like_torch])
def test_refused_memory_names_the_field_to_raise(
    request_: StageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocate: Any
) -> None:
    monkeypatch.setattr("stillhouse.stages.initialise.run", lambda context: allocate())
    with pytest.raises(ConfigurationError, match=r"raise resources\.stages\.initialise\.memory_gib"):
        run_stage(request_, work=tmp_path / "work")
    assert record_of(request_).exit_code == 78


def test_other_runtime_errors_stay_defects(
    request_: StageRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(context: Any) -> None:
        raise RuntimeError("the shapes differ")

    monkeypatch.setattr("stillhouse.stages.initialise.run", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run_stage(request_, work=tmp_path / "work")
    assert record_of(request_).exit_code == 70


def test_a_second_process_with_the_same_key_is_told_to_wait(request_: StageRequest, tmp_path: Path) -> None:
    import fcntl

    folder = tmp_path / "work" / "initialise"
    folder.mkdir(parents=True)
    with (folder / f"{key_of(request_)}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TryAgain, match="another process"):
            run_stage(request_, work=tmp_path / "work")


def test_a_work_folder_that_cant_be_made_is_named(request_: StageRequest, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("no folder")
    with pytest.raises(ConfigurationError, match=r"work/.*: Not a directory"):
        run_stage(request_, work=tmp_path / "work")


def test_a_missing_input_is_named(request_: StageRequest, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="teacher"):
        run_stage(changed(request_, inputs={}), work=tmp_path / "work")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    with mlflow_server(folder) as running:
        yield running


@pytest.mark.slow
def test_mlflow_killed_in_the_middle_costs_no_work(
    request_: StageRequest, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stillhouse.stages.initialise as stage

    work = stage.run

    def work_while_the_server_dies(context: Any) -> Any:
        outcome = work(context)
        server.kill()
        return outcome

    monkeypatch.setattr(stage, "run", work_while_the_server_dies)
    tracked = changed(request_, tracking_uri=server.url)
    with pytest.raises(TryAgain, match="does not answer"):
        run_stage(tracked, work=tmp_path / "work")
    place = result_key("initialise", key_of(tracked))
    stored = StageResult.model_validate_json(open_store(tracked.store).get(place))
    assert record_of(tracked).exit_code == 75

    monkeypatch.setattr(stage, "run", lambda context: pytest.fail("the work was done already"))
    again = run_stage(tracked, work=tmp_path / "work")
    assert read_result(again) == stored
    assert json.loads((tmp_path / "store/runs/run-1/tasks/initialise.json").read_text())["state"] == "reused"
