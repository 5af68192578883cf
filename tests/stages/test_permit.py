"""Stage ``permit``: it comes before anything of the teacher's, costs nothing, and refuses with exit code 77."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.contract import ConfigurationError, ExitCode, NotPermitted, StageRequest, TermsReport
from stillhouse.recipe import load_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.permit import judge_teachers
from stillhouse.stages.records import read_records, read_result
from stillhouse.store import open_store, read_artifact
from stillhouse.teacher.terms import TERMS_FILE


def request(workflow: Path, root: Path, **overrides: Any) -> StageRequest:
    recipe = load_recipe(workflow, {field.replace("__", "."): value for field, value in overrides.items()})
    return StageRequest(
        stage="permit",
        run_id="r1",
        task_id="permit",
        recipe=recipe.model_dump(mode="json"),
        store=f"file://{root / 'store'}",
    )


def own_policy(folder: Path, ruling: str) -> Path:
    path = folder / "own-terms.yaml"
    entry = {"name": "CC0-1.0", "ruling": ruling, "rule": "As our lawyers see it.", "basis": "house-rule"}
    path.write_text(yaml.safe_dump({"name": "own", "description": "Ours.", "licences": [entry]}))
    return path


def test_a_permitted_run_knows_its_teachers_and_equal_runs_agree_byte_by_byte(workflow: Path, tmp_path: Path) -> None:
    first = read_result(run_stage(request(workflow, tmp_path), work=tmp_path / "work")).outputs["terms"]
    again = request(workflow, tmp_path).model_copy(update={"run_id": "r2"})
    second = read_result(run_stage(again, work=tmp_path / "work")).outputs["terms"]
    assert second.sha256 == first.sha256
    report = TermsReport.model_validate_json(read_artifact(first))
    assert report.teachers == ("teacher",)
    assert report.integrity.outcome == "pass"


@pytest.mark.parametrize(
    ("licence", "message"), [("llama2", "denied"), ("gemma", "needs a sign-off"), ("no such", "unknown to the terms")]
)
def test_a_refused_run_stops_on_one_line_and_leaves_no_result(
    workflow: Path, tmp_path: Path, licence: str, message: str
) -> None:
    asked = request(workflow, tmp_path, teacher__licence=licence)
    with pytest.raises(NotPermitted, match=message):
        run_stage(asked, work=tmp_path / "work")
    record = read_records(open_store(asked.store), "r1")["permit"]
    assert record.state == "failed"
    assert record.exit_code == ExitCode.NOT_PERMITTED
    assert message in record.message
    assert not list(tmp_path.glob("store/stages/permit/*/result.json"))


def test_the_deployments_policy_is_asked_every_time(
    workflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(request(workflow, tmp_path), work=tmp_path / "work")
    monkeypatch.setenv(TERMS_FILE, str(own_policy(tmp_path, "denied")))
    with pytest.raises(NotPermitted, match="As our lawyers see it"):
        run_stage(request(workflow, tmp_path), work=tmp_path / "work")


def test_the_process_of_the_stage_ends_with_exit_code_77(workflow: Path, tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(request(workflow, tmp_path).model_dump_json())
    command = [sys.executable, "-m", "stillhouse", "stage", "permit", "--request", str(path), "--work", str(tmp_path)]
    environment = os.environ | {TERMS_FILE: str(own_policy(tmp_path, "denied"))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == ExitCode.NOT_PERMITTED
    assert "As our lawyers see it" in done.stderr
    allowed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert allowed.returncode == ExitCode.OK, allowed.stderr
    assert json.loads(allowed.stdout)["uri"].endswith("result.json")


def test_a_registered_model_needs_its_registry(workflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    source = {"kind": "registry", "uri": "models:/elder@champion"}
    for field in ("teacher.source", "student.source"):
        with pytest.raises(ConfigurationError, match=r"elder@champion.*MLFLOW_TRACKING_URI"):
            judge_teachers(load_recipe(workflow, {field: source}))
