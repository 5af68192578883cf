"""The command line as its users meet it: one line, the right exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.contract import ExitCode

ROOT = Path(__file__).parents[2]


def stillhouse(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stillhouse", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", ["quickstart", "questions-fine", "distilbert", "deepseek-r1", "step-by-step"])
def test_every_shipped_recipe_passes_its_check(name: str) -> None:
    checked = stillhouse("recipe", "check", name)
    assert checked.returncode == ExitCode.OK, checked.stderr
    assert name in checked.stdout


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    answer = stillhouse("recipe", "check", "nonsense")
    assert answer.returncode == ExitCode.CONFIGURATION
    assert "quickstart" in answer.stderr


def test_the_check_says_what_the_terms_policy_says_of_every_teacher(workflow: Path) -> None:
    other = "preflight.teachers=[{name: other, source: {kind: path, path: teacher}, licence: gemma}]"
    checked = stillhouse("recipe", "check", str(workflow), "--set", "teacher.licence=llama2", "--set", other)
    assert checked.returncode == ExitCode.OK, checked.stderr
    denied, candidate = checked.stdout.splitlines()[1:]
    assert denied.startswith("✗ NOT PERMITTED: teacher teacher: denied for commercial use under licence 'llama2'")
    assert candidate.startswith("✗ NOT PERMITTED: candidate-teacher teacher: needs a sign-off")
    assert "✓ teacher teacher: allowed" in stillhouse("recipe", "check", str(workflow)).stdout


def test_a_preflight_refuses_a_candidate_that_is_not_permitted(workflow: Path, tmp_path: Path) -> None:
    other = "preflight.teachers=[{name: other, source: {kind: path, path: teacher}, licence: llama2}]"
    places = ("--store", str(tmp_path / "store"), "--work", str(tmp_path / "work"))
    answer = stillhouse("preflight", str(workflow), "--set", other, *places)
    assert answer.returncode == ExitCode.NOT_PERMITTED
    assert answer.stderr.count("\n") == 1
    assert "candidate-teacher teacher: denied" in answer.stderr


def test_lineage_without_a_server_says_what_to_set() -> None:
    answer = stillhouse("lineage", "gpt-4o")
    assert answer.returncode == ExitCode.CONFIGURATION
    assert "MLFLOW_TRACKING_URI" in answer.stderr


def test_a_bad_value_is_refused_by_field() -> None:
    answer = stillhouse("recipe", "check", "quickstart", "--set", "distillation.alpha=1.5")
    assert answer.returncode == ExitCode.CONFIGURATION
    assert answer.stderr.count("\n") == 1
    assert "distillation.alpha" in answer.stderr


def test_a_missing_file_of_the_recipe_is_found_by_the_check(workflow: Path) -> None:
    (workflow.parent / "films.csv").unlink()
    answer = stillhouse("recipe", "check", str(workflow))
    assert answer.returncode == ExitCode.CONFIGURATION
    assert "films.csv" in answer.stderr


def test_the_schema_is_json_and_describes_fields() -> None:
    schema = json.loads(stillhouse("recipe", "schema").stdout)
    assert schema["properties"]["distillation"]
    assert "temperature" in json.dumps(schema)


def test_a_new_recipe_is_written_once_and_never_over_another(tmp_path: Path) -> None:
    first = stillhouse("recipe", "new", "my-task", "--folder", str(tmp_path))
    assert first.returncode == ExitCode.OK
    text = (tmp_path / "my-task.yaml").read_text()
    second = stillhouse("recipe", "new", "my-task", "--folder", str(tmp_path))
    assert second.returncode == ExitCode.CONFIGURATION
    assert (tmp_path / "my-task.yaml").read_text() == text


def test_a_request_for_another_stage_is_refused(tmp_path: Path) -> None:
    request = {"stage": "validate", "run_id": "r", "task_id": "validate", "recipe": {}, "store": f"file://{tmp_path}"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    answer = stillhouse("stage", "distill", "--request", str(tmp_path / "request.json"))
    assert answer.returncode == ExitCode.CONFIGURATION
    assert "'validate', not 'distill'" in answer.stderr


@pytest.mark.parametrize("content", [None, "no json", '{"stage": "validate"}'])
def test_a_bad_request_ends_on_one_line(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "request.json"
    if content is not None:
        path.write_text(content)
    answer = stillhouse("stage", "validate", "--request", str(path))
    assert answer.returncode == ExitCode.CONFIGURATION
    assert answer.stderr.count("\n") == 1


def test_the_doctor_finds_this_machine_fit() -> None:
    answer = stillhouse("doctor")
    assert answer.returncode == ExitCode.OK, answer.stdout
    assert "Python" in answer.stdout


@pytest.mark.slow
def test_a_preflight_ends_with_its_conclusion_and_costs_nothing_twice(workflow: Path, tmp_path: Path) -> None:
    budget = ("--set", "preflight={rows: 32, items: 24, epochs: 1, assistants: []}")
    places = ("--store", str(tmp_path / "store"), "--work", str(tmp_path / "work"))
    first = stillhouse("preflight", str(workflow), *budget, *places)
    assert first.returncode == ExitCode.OK, first.stderr
    assert "kd over sft" in first.stdout
    assert "the student learns, kd" in first.stdout
    again = stillhouse("preflight", str(workflow), *budget, *places)
    assert again.returncode == ExitCode.OK, again.stderr
    assert first.stdout.endswith(again.stdout)
