"""The shrunken quickstart through a real ``airflow standalone`` and a real MLflow server."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from runs import TAKES_MINUTES, digests, run_in_process, task_states
from tiny import write_workflow

from stillhouse.contract import ExitCode
from stillhouse.orchestration.quickstart import AirflowClient, RunFolder, start_servers, wait_until_ready
from stillhouse.orchestration.quickstart.settings import USER
from stillhouse.promotion import Ledger
from stillhouse.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * TAKES_MINUTES)]

ROOT = Path(__file__).parents[2]


def quickstart(project: Path, recipe: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillhouse", "quickstart", str(recipe), "--stop"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=TAKES_MINUTES)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's DAG files and no recipe."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "dags" / "recipes").mkdir(parents=True)
    for file in (ROOT / "dags").glob("*.py"):
        shutil.copy(file, folder / "dags")
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small recipe of a user's own, outside of the project."""
    folder = tmp_path_factory.mktemp("mine") / "tiny"
    folder.mkdir()
    return write_workflow(folder)


@pytest.fixture(scope="module")
def first(project: Path, recipe: Path) -> subprocess.CompletedProcess[str]:
    return quickstart(project, recipe)


def test_the_student_is_distilled_judged_and_promoted(first: subprocess.CompletedProcess[str], project: Path) -> None:
    assert first.returncode == ExitCode.OK, first.stdout + first.stderr
    assert "PROMOTE" in first.stdout
    assert "models:/tiny-student@champion" in first.stdout
    assert set(task_states(project / ".run").values()) == {"succeeded"}


def test_mlflow_holds_one_run_per_task_below_one_parent(first: subprocess.CompletedProcess[str], project: Path) -> None:
    client = MlflowClient(f"sqlite:///{project / '.run' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("stillhouse/tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parents[0].data.tags["stillhouse.verdict"] == "promote"
    assert parents[0].data.params["distillation.temperature"] == "2.0"
    children = {run.data.tags["stillhouse.task_id"]: run for run in runs if run is not parents[0]}
    assert set(children) == set(task_states(project / ".run")) - {"announce"}
    curve = client.get_metric_history(children["distill-kd"].info.run_id, "train/kd")
    assert len({point.step for point in curve}) == len(curve) > 3


def test_registry_and_ledger_agree_on_the_champion(first: subprocess.CompletedProcess[str], project: Path) -> None:
    client = MlflowClient(f"sqlite:///{project / '.run' / 'mlflow' / 'mlflow.db'}")
    version = client.get_model_version_by_alias("tiny-student", "champion")
    entries = Ledger(open_store(f"file://{project / '.run' / 'store'}"), "tiny-student").verify().actions
    assert [entry.artifact.sha256 for entry in entries] == [version.tags["stillhouse.model_sha256"]]
    assert entries[0].approval.mode == "auto"


def test_a_second_run_reuses_every_stage_and_moves_nothing(
    first: subprocess.CompletedProcess[str], project: Path, recipe: Path
) -> None:
    second = quickstart(project, recipe)
    assert second.returncode == ExitCode.OK, second.stdout + second.stderr
    states = task_states(project / ".run")
    assert {task: state for task, state in states.items() if state != "reused"}.keys() == {
        "permit",
        "promote",
        "announce",
    }
    assert "already" in second.stdout
    ledger = Ledger(open_store(f"file://{project / '.run' / 'store'}"), "tiny-student")
    assert [entry.action for entry in ledger.verify().entries] == ["promote", "outcome"]


def test_without_airflow_the_same_recipe_gives_the_same_digests(
    first: subprocess.CompletedProcess[str], project: Path, recipe: Path, tmp_path: Path
) -> None:
    alone = run_in_process(recipe, tmp_path)
    assert alone.returncode == ExitCode.NOT_PROMOTED, alone.stderr
    assert digests(tmp_path) == digests(project / ".run")


def test_reconciliation_runs_through_the_scheduler(
    first: subprocess.CompletedProcess[str], project: Path, recipe: Path
) -> None:
    folder = RunFolder(root=project / ".run")
    servers = start_servers(folder, dags=project / "dags")
    try:
        wait_until_ready(servers, folder)
        with AirflowClient(servers.airflow_url, user=USER, password=folder.password()) as client:
            client.log_in()
            client.unpause("stillhouse_reconcile")
            client.trigger("stillhouse_reconcile", "drill", {"models": ["tiny-student"], "repair": False})
            deadline = time.monotonic() + TAKES_MINUTES / 4
            while (state := client.run_state("stillhouse_reconcile", "drill")) not in ("success", "failed"):
                assert time.monotonic() < deadline
                time.sleep(1)
            tasks = {task.task_id: task.state for task in client.tasks("stillhouse_reconcile", "drill")}
    finally:
        servers.stop()
    assert state == "success"
    assert tasks == {"models": "success", "reconcile": "success"}
