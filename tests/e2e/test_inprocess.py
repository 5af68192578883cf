"""The whole workflow in processes of its own, as `stillhouse run` runs it: reuse, damage, kills, bad input."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from runs import digests, results, run_command, run_in_process, task_states

from stillhouse.contract import ConfigurationError, ExitCode
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.plan import plan
from stillhouse.recipe import load_recipe

pytestmark = pytest.mark.slow

STAGES_OF_THE_MACHINE = ("announce", "promote")
"""They need an MLflow server; see test_standalone.py."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and the folder of a run that nothing disturbed."""
    from tiny import write_workflow

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny").mkdir()
    recipe = write_workflow(folder / "tiny")
    done = run_in_process(recipe, folder)
    assert done.returncode == ExitCode.NOT_PROMOTED, done.stderr
    return recipe, folder


def test_every_task_leaves_a_verified_result(finished: tuple[Path, Path]) -> None:
    recipe, root = finished
    planned = [task for task in plan(load_recipe(recipe)) if task.stage not in STAGES_OF_THE_MACHINE]
    assert len(results(root)) == len(planned)


def test_a_second_run_reuses_every_result(finished: tuple[Path, Path]) -> None:
    recipe, root = finished

    def written() -> dict[Path, int]:
        files = [path for path in root.glob("store/stages/**/*") if path.is_file() and "permit" not in path.parts]
        return {path: path.stat().st_mtime_ns for path in files}

    before = written()
    assert run_in_process(recipe, root).returncode == ExitCode.NOT_PROMOTED
    assert written() == before
    states = task_states(root)
    assert states.pop("permit") == "succeeded"  # whether the run may go on is asked every time
    assert set(states.values()) == {"reused"}


def test_a_damaged_output_is_made_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, root = finished
    expected = digests(root)
    weights = next(root.glob("store/stages/initialise/*/model/model.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = run_in_process(recipe, root)
    assert done.returncode == ExitCode.NOT_PROMOTED, done.stderr
    assert "missing or damaged" in done.stderr
    assert digests(root) == expected


def test_killed_in_every_stage_it_ends_with_the_same_digests(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, undisturbed = finished
    planned = [task for task in plan(load_recipe(recipe)) if task.stage not in STAGES_OF_THE_MACHINE]
    for task in planned:
        process = subprocess.Popen(run_command(recipe, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert wait_until_running(process, tmp_path, task.task_id, training=task.stage == "distill")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = run_in_process(recipe, tmp_path)
    assert done.returncode == ExitCode.NOT_PROMOTED, done.stderr
    assert digests(tmp_path) == digests(undisturbed)


def wait_until_running(process: subprocess.Popen[bytes], root: Path, task_id: str, *, training: bool) -> bool:
    """Return once the task has begun, and, if it trains, once its first checkpoint lies on the disk."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        records = sorted(root.glob(f"store/runs/*/tasks/{task_id}.json"), key=lambda path: path.stat().st_mtime)
        begun = bool(records) and json.loads(records[-1].read_text())["state"] == "running"
        if begun and (not training or list(root.glob("work/distill/*/checkpoints/*/COMPLETE.json"))):
            return True
        time.sleep(0.01)
    return False


def test_interrupted_it_says_how_to_go_on(workflow: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        run_command(workflow, tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell has SIGINT ignored, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert wait_until_running(process, tmp_path, "validate", training=False)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "run again" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("section", "field", "value", "code", "words"),
    [
        ("distillation", "alpha", 1.5, ExitCode.CONFIGURATION, "distillation.alpha"),
        ("distillation", "temperature", 0, ExitCode.CONFIGURATION, "distillation.temperature"),
        ("student", "layers", 9, ExitCode.CONFIGURATION, "more layers than"),
        ("gate", "policy", "nowhere.yaml", ExitCode.CONFIGURATION, "nowhere.yaml"),
    ],
)
def test_bad_recipes_end_on_one_line(
    finished: tuple[Path, Path], tmp_path: Path, section: str, field: str, value: object, code: ExitCode, words: str
) -> None:
    recipe, root = finished
    document = yaml.safe_load(recipe.read_text())
    document[section] = document.get(section, {}) | {field: value}
    changed = recipe.with_name(f"{section}-{field}.yaml")
    changed.write_text(yaml.safe_dump(document))
    done = run_in_process(changed, root)
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert words in last
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_a_reason_to_try_again_and_leaves_nothing_half_written(workflow: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        done = run_in_process(workflow, small)
        assert done.returncode == ExitCode.TRY_AGAIN, done.stderr
        assert "no space left" in done.stderr.lower()
        assert not list(small.glob("store/stages/prepare-teacher/*/result.json"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_test_row_in_train_stops_the_run_and_is_named_by_id(workflow: Path, tmp_path: Path) -> None:
    lines = (workflow.parent / "films.csv").read_text().splitlines()
    leaked = lines[7].split(",")[1]
    table = workflow.parent / "test.csv"
    table.write_text("\n".join([lines[0], *(f"t{line}" for line in lines[1:100])]) + "\n")
    document = yaml.safe_load(workflow.read_text())
    document["data"]["test"] = document["data"]["train"] | {"source": {"kind": "path", "path": "test.csv"}}
    workflow.write_text(yaml.safe_dump(document))
    done = run_in_process(workflow, tmp_path)
    assert done.returncode == ExitCode.DATA, done.stderr
    assert "r6" in done.stderr.strip().splitlines()[-1]
    assert leaked not in done.stdout + done.stderr


def test_deployment_settings_are_asked_for_by_name() -> None:
    with pytest.raises(ConfigurationError, match="STILLHOUSE_STORE and STILLHOUSE_WORK"):
        Deployment.from_environment({})
