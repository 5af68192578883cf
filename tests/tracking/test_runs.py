"""Runs on a real MLflow server: found again, never doubled, and no obstacle when the server is away."""

import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from servers import free_ports, mlflow_server

from stillhouse.contract import (
    Artifact,
    HistoryPoint,
    StageBug,
    StageResult,
    TrainingHistory,
    TryAgain,
    ValidationPoint,
)
from stillhouse.recipe import Recipe, parse_recipe
from stillhouse.tracking import Tracking
from stillhouse.tracking.content import recipe_params, result_datasets

TABLE = {
    "source": {"kind": "path", "path": "/data/train.csv"},
    "format": "csv",
    "licence": "CC0-1.0",
    "origin": "made up",
}
START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)


def recipe_with(**data: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "toy",
            "description": "A toy.",
            "task": "text-classification",
            "data": {"domain": "movies", "labels": ["negative", "positive"], "train": TABLE} | data,
            "teacher": {"source": {"kind": "path", "path": "/teacher"}, "licence": "MIT"},
            "student": {"layers": 3},
            "gate": {"policy": "/policy.yaml"},
            "promotion": {"model": "toy"},
        },
        base=Path("/"),
    )


def artifact(name: str, digit: str) -> Artifact:
    return Artifact(uri=f"s3://bucket/objects/{name}", sha256=digit * 64, num_bytes=10)


def result_of(stage: str = "distill", **changes: Any) -> StageResult:
    fields: dict[str, Any] = {
        "stage": stage,
        "key": "a" * 64,
        "inputs": {"train": artifact("train.parquet", "1"), "cache": artifact("cache", "2")},
        "outputs": {"model": artifact("model", "3")},
        "metrics": {"loss": 0.25, "samples_per_second": 80.0},
        "summary": "The student learned.",
        "started_at": START,
        "finished_at": START + timedelta(seconds=30),
        "seconds": 30.0,
        "cpu_seconds": 55.0,
        "peak_memory_bytes": 2 << 30,
        "code_version": "b" * 64,
    }
    return StageResult.model_validate(fields | changes)


HISTORY = TrainingHistory(
    total_steps=3,
    points=tuple(
        HistoryPoint(
            step=step,
            epoch=step / 3,
            seen=32 * step,
            learning_rate=1e-4 / step,
            loss=1.0 / step,
            terms={"ce": 0.5 / step, "kd": 2.0 / step},
            gradient_norm=None if step == 1 else 0.9,
        )
        for step in (1, 2, 3)
    ),
)


@pytest.fixture
def experiment() -> str:
    return f"stillhouse/{uuid.uuid4().hex}"


@pytest.fixture
def tracking(mlflow_url: str, experiment: str) -> Tracking:
    return Tracking(mlflow_url, experiment)


@pytest.fixture
def client(mlflow_url: str) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_url)


def runs_of(client: MlflowClient, experiment: str) -> list[Run]:
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id]))


def test_a_workflow_has_one_run_with_its_recipe(
    mlflow_url: str, experiment: str, tracking: Tracking, client: MlflowClient
) -> None:
    first = tracking.open_workflow("run-1", recipe_with(), {"Airflow": "http://localhost/run-1"})
    again = Tracking(mlflow_url, experiment).open_workflow("run-1", recipe_with())
    other = tracking.open_workflow("run-2", recipe_with())
    assert first == again != other
    run = client.get_run(first)
    assert run.data.params["distillation.alpha"] == "0.5"
    assert run.data.params["data.labels"] == "negative, positive"
    assert run.data.tags["stillhouse.run_id"] == "run-1"
    assert "[Airflow](http://localhost/run-1)" in run.data.tags["mlflow.note.content"]
    assert run.info.run_name.startswith("toy ")


def test_a_task_has_one_run_below_its_workflow_and_is_reopened(tracking: Tracking, client: MlflowClient) -> None:
    workflow = tracking.open_workflow("run-1", recipe_with())
    task = tracking.open_task("run-1", "distill-kd", "distill")
    other = tracking.open_task("run-1", "distill-sft", "distill")
    tracking.close_task(task, "FAILED")
    assert client.get_run(task).info.status == "FAILED"
    assert tracking.open_task("run-1", "distill-kd", "distill") == task != other
    run = client.get_run(task)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "distill-kd"
    assert run.data.tags["mlflow.parentRunId"] == workflow
    assert run.data.tags["stillhouse.task_id"] == "distill-kd"


def test_tasks_that_start_at_once_share_one_workflow_run(
    mlflow_url: str, experiment: str, client: MlflowClient
) -> None:
    def start(number: int) -> str:
        tracking = Tracking(mlflow_url, experiment)
        tracking.open_workflow("run-1", recipe_with())
        return tracking.open_task("run-1", f"teach-{number}", "teach")

    with ThreadPoolExecutor(4) as pool:
        tasks = list(pool.map(start, range(4)))
    kinds = [run.data.tags["stillhouse.kind"] for run in runs_of(client, experiment)]
    assert len(set(tasks)) == 4
    assert sorted(kinds) == ["task"] * 4 + ["workflow"]


def test_a_task_needs_its_workflow(tracking: Tracking) -> None:
    with pytest.raises(StageBug, match="open_workflow"):
        tracking.open_task("never-opened", "validate", "validate")


def test_publishing_twice_shows_everything_once(tracking: Tracking, client: MlflowClient, tmp_path: Path) -> None:
    tracking.open_workflow("run-1", recipe_with())
    task = tracking.open_task("run-1", "distill-kd", "distill")
    report, docs = tmp_path / "report.html", tmp_path / "docs-folder"
    report.write_text("<p>fine</p>")
    docs.mkdir()
    (docs / "index.html").write_text("<p>docs</p>")
    for _ in range(2):
        tracking.publish(task, result_of(), history=HISTORY, files={"report": report, "docs": docs})
    run = client.get_run(task)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 0.25
    assert run.data.metrics["task/peak_memory_mib"] == 2048
    assert run.data.tags["stillhouse.output.model"] == "3" * 64
    assert run.data.tags["mlflow.note.content"] == "The student learned."
    assert [(m.step, m.value) for m in client.get_metric_history(task, "train/kd")] == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    assert [m.step for m in client.get_metric_history(task, "train/gradient_norm")] == [2, 3]
    assert len(client.get_metric_history(task, "loss")) == 1
    assert [dataset.dataset.name for dataset in run.inputs.dataset_inputs] == ["train"]
    assert sorted(file.path for file in client.list_artifacts(task)) == ["docs", "report.html"]
    assert [file.path for file in client.list_artifacts(task, "docs")] == ["docs/index.html"]


def test_live_points_and_the_published_curve_are_the_same_points(tracking: Tracking, client: MlflowClient) -> None:
    tracking.open_workflow("run-1", recipe_with())
    task = tracking.open_task("run-1", "distill-kd", "distill")
    live = tracking.live(task)
    for point in (*HISTORY.points[:2], HISTORY.points[0]):  # killed after two, and started again
        live(point)
    deadline = time.monotonic() + 60
    while len(client.get_metric_history(task, "train/ce")) < 2:
        assert time.monotonic() < deadline
    tracking.publish(task, result_of(), history=HISTORY)
    assert [m.step for m in client.get_metric_history(task, "train/ce")] == [1, 2, 3]


def test_closing_a_workflow_ends_what_was_left_running(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    workflow = tracking.open_workflow("run-1", recipe_with())
    done, killed = (tracking.open_task("run-1", task, "distill") for task in ("distill-kd", "distill-sft"))
    tracking.publish(done, result_of())
    (tmp_path / "report.html").write_text("<p>fine</p>")
    for _ in range(2):
        tracking.close_workflow(
            workflow,
            succeeded=False,
            metrics={"movies/kd/accuracy": 0.85},
            tags={"stillhouse.verdict": "reject"},
            files={"report": tmp_path / "report.html"},
        )
    run = client.get_run(workflow)
    assert (run.info.status, run.data.tags["stillhouse.verdict"]) == ("FAILED", "reject")
    assert len(client.get_metric_history(workflow, "movies/kd/accuracy")) == 1
    assert [client.get_run(task).info.status for task in (done, killed)] == ["FINISHED", "KILLED"]
    assert [file.path for file in client.list_artifacts(workflow)] == ["report.html"]


def test_system_metrics_arrive_in_the_task_s_run(
    tracking: Tracking, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    tracking.open_workflow("run-1", recipe_with())
    task = tracking.open_task("run-1", "distill-kd", "distill")
    deadline = time.monotonic() + 60
    with tracking.system_metrics(task):
        while "system/cpu_utilization_percentage" not in client.get_run(task).data.metrics:
            assert time.monotonic() < deadline


def test_nothing_is_printed(tracking: Tracking, capfd: pytest.CaptureFixture[str]) -> None:
    workflow = tracking.open_workflow("run-1", recipe_with())
    task = tracking.open_task("run-1", "distill-kd", "distill")
    with tracking.system_metrics(task):
        tracking.publish(task, result_of(), history=HISTORY)
    tracking.close_workflow(workflow, succeeded=True)
    assert capfd.readouterr() == ("", "")


def test_an_absent_server_is_told_by_address() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(TryAgain, match=f"MLflow at {url} does not answer; start it"):
        Tracking(url, "any")


@pytest.mark.slow
def test_a_server_killed_midway_stops_publishing_but_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mlflow_server(tmp_path) as server:
        tracking = Tracking(server.url, "any")
        tracking.open_workflow("run-1", recipe_with())
        task = tracking.open_task("run-1", "distill-kd", "distill")
        live = tracking.live(task)
        server.kill()
        with caplog.at_level(logging.WARNING, logger="stillhouse"):
            for point in HISTORY.points:
                live(point)
            deadline = time.monotonic() + 120
            while not [record for record in caplog.records if "live curve has gaps" in record.message]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(TryAgain, match="does not answer"):
                tracking.publish(task, result_of(), history=HISTORY)
            with tracking.system_metrics(task):
                pass
        assert len([record for record in caplog.records if "live curve has gaps" in record.message]) == 1


def test_long_values_are_cut_and_unset_ones_left_out() -> None:
    params = recipe_params(recipe_with(train=TABLE | {"origin": "x" * 7000}))
    assert len(params["data.train.origin"]) == 6000
    assert params["data.train.origin"].endswith("…")
    assert "data.validation" not in params
    assert params["data.train.source.path"] == "/data/train.csv"


def test_frozen_tables_are_data_sets_of_the_stage_that_made_them() -> None:
    outputs = {"train": artifact("train.parquet", "1"), "docs": artifact("docs", "2")}
    made = result_datasets(result_of("validate", inputs={}, outputs=outputs))
    assert [(d.dataset.name, d.dataset.digest) for d in made] == [("train", "1" * 36)]


def test_publishing_right_after_live_points_draws_each_point_once(tracking: Tracking, client: MlflowClient) -> None:
    tracking.open_workflow("run-hasty", recipe_with())
    task = tracking.open_task("run-hasty", "distill-kd", "distill")
    points = tuple(
        HistoryPoint(step=step, epoch=1.0, seen=step, learning_rate=0.1, loss=1.0 / step, terms={"ce": 1.0 / step})
        for step in range(1, 200)
    )
    draw = tracking.live(task)
    for point in points:
        draw(point)
    tracking.publish(task, result_of(), history=TrainingHistory(total_steps=len(points), points=points))
    drawn = client.get_metric_history(task, "train/loss")
    assert [metric.step for metric in drawn] == [point.step for point in points]


def test_held_out_measurements_are_shown_over_the_steps(tracking: Tracking, client: MlflowClient) -> None:
    tracking.open_workflow("run-1", recipe_with())
    task = tracking.open_task("run-1", "distill-kd", "distill")
    points = tuple(ValidationPoint(step=step, tokens=512 * step, loss=3.0 - step, targets=9) for step in (0, 2))
    for _ in range(2):
        tracking.publish(task, result_of(), history=HISTORY.model_copy(update={"validation": points}))
    found = client.get_metric_history(task, "held_out/loss")
    assert [(metric.step, metric.value) for metric in found] == [(0, 3.0), (2, 1.0)]
    assert [metric.value for metric in client.get_metric_history(task, "held_out/tokens_seen")] == [0, 1024]


def test_a_registered_models_figures_are_shown_on_the_model(
    tracking: Tracking, client: MlflowClient, experiment: str
) -> None:
    run_id = tracking.open_workflow("run-1", recipe_with())
    name = experiment.replace("/", "-")
    logged = client.create_logged_model(client.get_experiment_by_name(experiment).experiment_id, source_run_id=run_id)
    client.finalize_logged_model(logged.model_id, "READY")
    client.create_registered_model(name)
    source, model_id = f"models:/{logged.model_id}", logged.model_id
    version = int(client.create_model_version(name, source=source, run_id=run_id, model_id=model_id).version)
    for _ in range(2):
        tracking.log_version_figures(run_id, name, version, {"movies/kd/accuracy": 0.87})
    metrics = client.get_logged_model(logged.model_id).metrics
    assert [(metric.key, metric.value) for metric in metrics or ()] == [("movies/kd/accuracy", 0.87)]
    assert len(client.get_metric_history(run_id, "movies/kd/accuracy")) == 1
