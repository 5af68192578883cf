"""A chain of compression through the whole workflow: every kind of step, the gate after each, a kill in the middle."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from runs import TAKES_MINUTES, digests, results, run_command, run_in_process, task_states
from servers import mlflow_server
from tiny import write_workflow

from stillhouse.contract import Decision, EvaluationSummary, ExitCode, Promotion, StageResult, StepReport
from stillhouse.store import read_artifact

pytestmark = pytest.mark.slow

HEAL = {"epochs": 2, "learning_rate": 1e-3}
CHAIN: list[dict[str, Any]] = [
    {"kind": "prune-depth", "name": "shallow", "layers": 1, "heal": HEAL},
    {"kind": "prune-width", "name": "narrow", "feed_forward": 40, "heal": HEAL, "max_drop": 1.0},
    {"kind": "sparsify", "name": "zeros", "share": 0.3, "max_drop": 1.0},
    # What can't be kept: nine of ten weights go, and nothing heals.
    {"kind": "sparsify", "name": "ruined", "share": 0.95, "max_drop": 0.0},
    {"kind": "trim-vocabulary", "name": "trimmed", "max_drop": 1.0},
    {"kind": "low-rank", "name": "thin", "share": 0.8, "max_drop": 1.0},
    {"kind": "quantize", "name": "int8", "max_drop": 1.0},
    {"kind": "export", "name": "onnx", "format": "onnx-int8", "max_drop": 1.0, "min_agreement": 0.5},
]
CHAIN[0]["max_drop"] = 1.0
RUN_ENDED = (ExitCode.OK, ExitCode.NOT_PROMOTED)


def write(folder: Path) -> Path:
    (folder / "tiny").mkdir()
    return write_workflow(folder / "tiny", compression=CHAIN)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and the folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("chain")
    recipe = write(folder)
    done = run_in_process(recipe, folder)
    assert done.returncode in RUN_ENDED, done.stderr
    return recipe, folder


def of_stage(root: Path, stage: str) -> list[StageResult]:
    return [result for result in results(root).values() if result.stage == stage]


def reports(root: Path) -> list[StepReport]:
    found = [StepReport.model_validate_json(read_artifact(r.outputs["step"])) for r in of_stage(root, "compress")]
    return sorted(found, key=lambda report: report.position)


def test_each_step_is_judged_against_the_last_good_model(finished: tuple[Path, Path]) -> None:
    found = {report.name: report for report in reports(finished[1])}

    assert list(found) == [step["name"] for step in CHAIN]
    assert not found["ruined"].kept, "what costs too much is dropped"
    assert [found[name].before for name in ("trimmed", "thin", "int8")] == ["zeros", "trimmed", "trimmed"]
    assert found["onnx"].before == "thin", "the last good one that an export can begin with"
    for report in found.values():
        assert report.score.n == report.score_before.n == 60
        assert report.drop.low <= report.drop.value <= report.drop.high


def test_every_step_is_smaller_in_what_it_promises(finished: tuple[Path, Path]) -> None:
    found = {report.name: report for report in reports(finished[1])}

    for name in ("shallow", "narrow", "thin"):
        assert found[name].size.parameters < found[name].size_before.parameters
    for name in ("int8", "onnx"):
        assert found[name].size.num_bytes < found[name].size_before.num_bytes


def test_the_last_promotable_model_is_the_candidate_and_all_are_measured(finished: tuple[Path, Path]) -> None:
    (evaluated,), (decided,) = of_stage(finished[1], "evaluate"), of_stage(finished[1], "decide")
    summary = EvaluationSummary.model_validate_json(read_artifact(evaluated.outputs["summary"]))
    decision = Decision.model_validate_json(read_artifact(decided.outputs["decision"]))

    names = [step["name"] for step in CHAIN]
    assert summary.candidate == decision.candidate == "int8"
    assert summary.models == ("teacher", "kd", "sft", "start", *names)
    chosen = next(r for r in of_stage(finished[1], "compress") if r.parameters["step"] == "int8")
    assert decision.model_sha256 == chosen.outputs["model"].sha256
    assert b'id="compression"' in read_artifact(decided.outputs["report"])


def heals(root: Path) -> bool:
    """Tell whether step ``narrow`` has begun to train."""
    record = next(root.glob("store/runs/*/tasks/compress-narrow.json"), None)
    return record is not None and json.loads(record.read_text())["progress"] is not None


def test_killed_while_it_heals_the_chain_ends_with_the_same_digests(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, undisturbed = finished
    process = subprocess.Popen(run_command(recipe, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not heals(tmp_path):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()

    done = run_in_process(recipe, tmp_path)

    assert done.returncode in RUN_ENDED, done.stderr
    assert digests(tmp_path) == digests(undisturbed)


def test_another_bound_repeats_that_step_and_none_before(finished: tuple[Path, Path]) -> None:
    recipe, root = finished
    other = recipe.with_name("other.yaml")
    other.write_text(recipe.read_text().replace("min_agreement: 0.5", "min_agreement: 0.4"))

    assert run_in_process(other, root).returncode in RUN_ENDED

    states = task_states(root)
    steps = {task: state for task, state in states.items() if task.startswith(("distill-", "compress-"))}
    assert [task for task, state in steps.items() if state != "reused"] == ["compress-onnx"]


def test_integers_serve_as_the_champion_with_onnx_beside_them(tmp_path: Path) -> None:
    for name in ("tiny", "mlflow"):
        (tmp_path / name).mkdir()
    steps = [CHAIN[-2], CHAIN[-1] | {"format": "onnx"}]
    recipe = write_workflow(tmp_path / "tiny", compression=steps)
    with mlflow_server(tmp_path / "mlflow") as server:
        command = [*run_command(recipe, tmp_path), "--tracking", server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TAKES_MINUTES)
        assert done.returncode == ExitCode.OK, done.stderr
        client = MlflowClient(server.url)
        champion = client.get_model_version_by_alias("tiny-student", "champion")
        versions = client.search_model_versions("name='tiny-student'")

    (promoted,) = of_stage(tmp_path, "promote")
    promotion = Promotion.model_validate_json(read_artifact(promoted.outputs["promotion"]))
    (variant,) = [version for version in versions if version.version != champion.version]
    models = {r.parameters["step"]: r.outputs["model"].sha256 for r in of_stage(tmp_path, "compress")}
    assert promotion.variants == {"onnx": int(variant.version)}
    assert champion.tags["stillhouse.model_sha256"] == models["int8"]
    assert variant.tags["stillhouse.model_sha256"] == models["onnx"]
    assert variant.tags["stillhouse.variant_of"] == models["int8"]
    assert (variant.tags["stillhouse.variant"], variant.tags["stillhouse.form"]) == ("onnx", "onnx")
    assert not variant.aliases
