"""A stage in several processes that ``torchrun`` starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import write_workflow

from stillhouse.contract import ConfigurationError, ResultRef, StageRequest, StageResult, TrainingHistory, pretty_json
from stillhouse.orchestration.containers import stage_task
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.plan import plan
from stillhouse.orchestration.requests import build_request
from stillhouse.recipe import Recipe, RecipeError, load_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.ranks import accelerators
from stillhouse.stages.records import read_result
from stillhouse.store import fetch_artifact, read_artifact

PLACES = ("hidden", "attention_probs")
UPSTREAM = ("validate", "prepare-teacher", "initialise", "teach-0")


def recipe_of(folder: Path, *, processes: int, sharding: str) -> Recipe:
    overrides = {
        "data.checks.min_rows": 10,
        "teacher.shards": 1,
        "teacher.finetune.epochs": 1,
        "training.epochs": 3,
        "training.sharding": sharding,
        "resources": {"stages": {"distill": {"processes": processes}}},
    }
    return load_recipe(folder / "recipe.yaml", overrides)


def distill(root: Path, *, processes: int, sharding: str = "replicate") -> StageResult:
    """Run the tasks before ``distill-kd`` here and that one in processes of its own."""
    recipe = recipe_of(root / "tiny", processes=processes, sharding=sharding)
    deployment = Deployment(store=f"file://{root / 'store'}", work=root / "work", tracking_uri=None)
    tasks = {task.task_id: task for task in plan(recipe)}
    results: dict[str, ResultRef] = {}

    def request(task: str) -> StageRequest:
        return build_request(tasks[task], recipe=recipe, run_id="r", results=results, deployment=deployment)

    for task in UPSTREAM:
        results[task] = run_stage(request(task), work=deployment.work)
    asked = request("distill-kd")
    path = root / f"request-{processes}-{sharding}.json"
    path.write_bytes(pretty_json(asked))
    command = stage_task(asked, str(path), deployment).command(sys.executable)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.strip().splitlines()
    return read_result(ResultRef.model_validate_json(line))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "tiny").mkdir()
    write_workflow(folder / "tiny", rows=200)
    config = folder / "tiny" / "teacher" / "config.json"
    # Each process draws its own dropout.
    config.write_text(json.dumps(json.loads(config.read_text()) | {f"{place}_dropout_prob": 0.0 for place in PLACES}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_two_processes_make_the_student_that_one_makes(root: Path, sharding: str, tmp_path: Path) -> None:
    one, two = distill(root, processes=1), distill(root, processes=2, sharding=sharding)
    assert one.key != two.key
    assert set(two.outputs) == {"model", "history"}
    first, second = (
        TrainingHistory.model_validate_json(read_artifact(result.outputs["history"])) for result in (one, two)
    )
    assert first.total_steps == second.total_steps > 5
    np.testing.assert_allclose([p.loss for p in second.points], [p.loss for p in first.points], rtol=1e-3)
    folders = [fetch_artifact(result.outputs["model"], tmp_path) for result in (one, two)]
    weights, others = (load_file(folder / "model.safetensors") for folder in folders)
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in others.items()}
    assert (folders[0] / "config.json").read_bytes() == (folders[1] / "config.json").read_bytes()


def test_the_number_of_processes_must_be_the_recipes(workflow: Path, tmp_path: Path) -> None:
    recipe = recipe_of(workflow.parent, processes=2, sharding="replicate")
    request = StageRequest(
        stage="distill",
        run_id="r",
        task_id="distill-kd",
        recipe=recipe.model_dump(mode="json"),
        parameters={"arm": "kd"},
        store=f"file://{tmp_path}",
    )
    with pytest.raises(ConfigurationError, match=r"runs in 2 processes .* torchrun --nproc-per-node 2"):
        run_stage(request, work=tmp_path)


def test_accelerators_of_all_nodes_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerators() == 0
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert accelerators() == 2
    monkeypatch.setenv("WORLD_SIZE", "6")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert accelerators() == 6


def test_only_training_runs_in_several_processes(workflow: Path) -> None:
    with pytest.raises(RecipeError, match=r"only stages\.distill may have more than one"):
        load_recipe(workflow, {"resources": {"stages": {"teach": {"processes": 2}}}})
