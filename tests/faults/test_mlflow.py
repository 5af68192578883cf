"""MLflow goes away before, during and after every task: nothing is lost, done twice or shown twice."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from proxies import Proxy, fault_proxy
from runs import TAKES_MINUTES
from servers import mlflow_server

from stillhouse.contract import NotPermitted, ResultRef, TryAgain
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.plan import PlannedTask, plan
from stillhouse.orchestration.requests import build_request
from stillhouse.promotion import Ledger
from stillhouse.recipe import load_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.catalog import CATALOG, find_reusable, key_of
from stillhouse.stages.records import read_records
from stillhouse.store import open_store
from stillhouse.tracking import Tracking

ACTING = ("permit", "promote", "announce")
"""They act on the outside world, so every try does its work anew and finds what is done already."""


class Works:
    """Counts how often each task's work is done, and lets the server go away when a task's work has ended."""

    def __init__(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proxy = proxy
        self.done: Counter[str] = Counter()
        self.leave = False
        for spec in CATALOG.values():
            module = importlib.import_module(spec.module)
            monkeypatch.setattr(module, "run", self.counted(module.run))

    def counted(self, run: Any) -> Any:
        def counted(context: Any) -> Any:
            outcome = run(context)
            self.done[context.request.task_id] += 1
            self.proxy.away = self.leave
            return outcome

        return counted


@pytest.mark.slow
@pytest.mark.timeout(2 * TAKES_MINUTES)
def test_whenever_the_server_leaves_the_task_is_tried_again_and_shown_once(
    workflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "mlflow").mkdir()
    with mlflow_server(tmp_path / "mlflow") as server, fault_proxy(server.url) as proxy:
        deployment = Deployment(store=f"file://{tmp_path / 'store'}", work=tmp_path / "work", tracking_uri=proxy.url)
        recipe, store, works = load_recipe(workflow), open_store(deployment.store), Works(proxy, monkeypatch)
        results: dict[str, ResultRef] = {}

        def fails(task: PlannedTask, *, before: bool) -> None:
            request = build_request(task, recipe=recipe, run_id="r", results=results, deployment=deployment)
            proxy.away, works.leave = before, not before
            with pytest.raises(TryAgain, match="does not answer"):
                run_stage(request, work=deployment.work)
            record = read_records(store, "r")[task.task_id]
            assert (record.state, record.exit_code) == ("failed", TryAgain.exit_code), task
            assert works.done[task.task_id] == (0 if before else 1)
            assert (find_reusable(request, key_of(request)) is not None) == (not before and task.stage not in ACTING)

        for task in plan(recipe):
            fails(task, before=True)
            if task.stage != "announce":  # its work is to show what happened: it can't end without the server
                fails(task, before=False)
            proxy.away = works.leave = False
            request = build_request(task, recipe=recipe, run_id="r", results=results, deployment=deployment)
            results[task.task_id] = run_stage(request, work=deployment.work)

        expected = {task.task_id: 2 if task.stage in ("permit", "promote") else 1 for task in plan(recipe)}
        assert works.done == expected
        client = MlflowClient(server.url)
        experiment = client.get_experiment_by_name(f"stillhouse/{recipe.name}")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        shown = Counter(run.data.tags.get("stillhouse.task_id", "the workflow") for run in runs)
        assert shown == dict.fromkeys([*(name for name in expected if name != "announce"), "the workflow"], 1)
        assert [version.version for version in client.search_model_versions("name = 'tiny-student'")] in ([1], ["1"])
        actions = [entry.action for entry in Ledger(store, "tiny-student").verify().entries]
        assert actions == ["promote", "outcome"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 503}, TryAgain),
        ({"status": 429}, TryAgain),
        ({"do": "drop"}, TryAgain),
        ({"do": "stall"}, TryAgain),
        ({"status": 401}, NotPermitted),
        ({"status": 403}, NotPermitted),
    ],
    ids=str,
)
def test_what_a_failing_server_means(
    fault: dict[str, Any], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with fault_proxy("http://127.0.0.1:9", then=fault) as proxy, pytest.raises(error) as caught:
        Tracking(proxy.url, "any")
    assert "\n" not in str(caught.value)
    assert proxy.url in str(caught.value)
