"""The real stage ``distill`` on two nodes: pods that meet by gloo, in a TrainJob that our double of the Trainer runs.

Store and work folder lie on a volume that both nodes see. Our double stands for the Trainer alone: the TrainJob, the
pods, the image, torchrun and the training are real.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import write_workflow
from trainer_cluster import TrainerCluster

from stillhouse.contract import ResultRef, StageRequest, StageResult, TrainingHistory, pretty_json
from stillhouse.orchestration.airflow.runtimes.pods import USER
from stillhouse.orchestration.airflow.runtimes.trainjob import TrainJobRun
from stillhouse.orchestration.airflow.stage import read_record
from stillhouse.orchestration.containers import Ended, stage_task
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.plan import plan
from stillhouse.orchestration.requests import build_request
from stillhouse.orchestration.runtimes import TrainJobRuntime, Volume
from stillhouse.recipe import Recipe, load_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.records import read_result
from stillhouse.store import open_store, read_artifact

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

UPSTREAM = ("validate", "prepare-teacher", "initialise", "teach-0")
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


class Runs(TrainJobRun):
    def __init__(self, *, request: StageRequest, uri: str, where: Deployment, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.task, self.where = stage_task(request, uri, where), where

    def execute(self, context: Any) -> Ended:
        return self.run_container(context, self.task, self.where)


def recipe_of(root: Path, *, nodes: int) -> Recipe:
    overrides = {
        "data.checks.min_rows": 10,
        "teacher.shards": 1,
        "teacher.finetune.epochs": 1,
        "training.epochs": 3,
        "resources": {"stages": {"distill": {"nodes": nodes}}},
    }
    return load_recipe(root / "tiny" / "recipe.yaml", overrides)


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a folder that pods of this machine can mount: the tests' own ones are closed to their user."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiny").mkdir()
        write_workflow(folder / "tiny", rows=200)
        config = folder / "tiny" / "teacher" / "config.json"
        # Each process draws its own dropout.
        config.write_text(json.dumps(json.loads(config.read_text()) | dict.fromkeys(DROPOUTS, 0.0)))
        yield folder


def request_of(root: Path, where: Deployment, results: dict[str, ResultRef], task: str, *, nodes: int) -> StageRequest:
    recipe = recipe_of(root, nodes=nodes)
    planned = next(one for one in plan(recipe) if one.task_id == task)
    return build_request(planned, recipe=recipe, run_id="r", results=results, deployment=where)


def history_of(result: StageResult) -> TrainingHistory:
    return TrainingHistory.model_validate_json(read_artifact(result.outputs["history"]))


def test_two_nodes_learn_what_one_process_learns(trainer: TrainerCluster, root: Path) -> None:
    where = Deployment(
        store=f"file://{root / 'store'}",
        work=root / "work",
        runtime=TrainJobRuntime(
            image=trainer.image,
            namespace=trainer.namespace,
            config_file=PurePosixPath(trainer.cluster.kubeconfig),
            training_runtime=trainer.runtime,
            gpu_pool=None,
            volumes=(Volume(source=str(root), target=str(root), read_only=False),),
        ),
    )
    results: dict[str, ResultRef] = {}
    for task in UPSTREAM:
        results[task] = run_stage(request_of(root, where, results, task, nodes=1), work=where.work)
    alone = read_result(run_stage(request_of(root, where, results, "distill-kd", nodes=1), work=where.work))

    request = request_of(root, where, results, "distill-kd", nodes=2)
    store = open_store(where.store)
    store.put("request.json", pretty_json(request))
    for path in (root, *root.rglob("*")):
        shutil.chown(path, USER, USER)
    context = {"ti": SimpleNamespace(dag_id="d", run_id="r", task_id="distill-kd", map_index=-1)}
    runs = Runs(request=request, uri=store.uri("request.json"), where=where, task_id="distill-kd")
    assert runs.execute(context).exit_code == 0

    record = read_record(store, request)
    assert record is not None
    assert record.request_sha256 == request.sha256
    together = read_result(record.result)
    assert together.key != alone.key
    one, two = history_of(alone), history_of(together)
    assert one.total_steps == two.total_steps > 5
    np.testing.assert_allclose([point.loss for point in two.points], [point.loss for point in one.points], rtol=1e-3)
    assert trainer.created(runs.task.name) == 1
    assert not trainer.jobs()
