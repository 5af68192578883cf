"""The DAGs for operators, and the commands that they run, as real processes against a real MLflow server."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException, ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization
from mlflow import MlflowClient
from promotions import approved
from servers import free_ports, mlflow_server

from stillhouse.contract import ConfigurationError, DataRejected, ExitCode, NotPermitted, TryAgain
from stillhouse.orchestration.airflow.operations import (
    NOBODY,
    ReconcileOperator,
    RollbackOperator,
    build_operations,
    chosen_models,
    promoted_models,
)
from stillhouse.orchestration.airflow.runtimes import operator_class
from stillhouse.orchestration.runtimes import LocalRuntime
from stillhouse.promotion import Ledger
from stillhouse.promotion.ledger import RollbackEntry
from stillhouse.promotion.promote import promote_model
from stillhouse.promotion.registry import DIGEST_TAG, Registry
from stillhouse.store import open_store

SHIPPED = Path(__file__).parents[2] / "dags"
HEAVY = ("torch", "transformers", "mlflow", "great_expectations", "datasets", "pandas", "sklearn", "scipy")


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server.url


class House:
    """Two versions, promoted in turn, of a registered model without files."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.root = f"file://{folder / 'store'}"
        self.client = MlflowClient(tracking_uri=url)
        self.name = f"m{uuid.uuid4().hex}"
        self.client.create_registered_model(self.name)
        self.run = self.client.create_run(self.client.create_experiment(self.name)).info
        self.ledger = Ledger(open_store(self.root), self.name)
        create = self.create_version

        class Hollow(Registry):
            def register(self, *args: Any, **kwargs: Any) -> int:
                return create(args[2].sha256)

            def load_back(self, *args: Any) -> None:
                pass

        for model in ("m1", "m2"):
            promote_model(approved(self.name, model, self.ledger), ledger=self.ledger, registry=Hollow(url))

    def create_version(self, sha256: str) -> int:
        """Register a version without files."""
        version = self.client.create_model_version(
            self.name, source=self.run.artifact_uri, run_id=self.run.run_id, tags={DIGEST_TAG: sha256}
        )
        return int(version.version)

    def champion(self) -> str:
        return str(self.client.get_model_version_by_alias(self.name, "champion").version)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"STILLHOUSE_STORE": self.root, "MLFLOW_TRACKING_URI": self.url}
        return subprocess.run(
            [sys.executable, "-m", "stillhouse", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture
def house(mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(mlflow_url, tmp_path)
    monkeypatch.setenv("STILLHOUSE_STORE", house.root)
    monkeypatch.setenv("STILLHOUSE_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", house.url)
    return house


def context(user: str | None = "ada", **params: Any) -> Any:
    dag, run = SimpleNamespace(dag_id="operations"), SimpleNamespace(triggering_user_name=user)
    return {"params": params, "dag_run": run, "dag": dag, "run_id": "r1"}


def dags() -> dict[str, DAG]:
    return build_operations(SHIPPED / "recipes")


def test_shipped_file_gives_both_dags_without_heavy_imports(tmp_path: Path) -> None:
    folder = tmp_path / "dags"
    shutil.copytree(SHIPPED / "recipes", folder / "recipes")
    shutil.copy(SHIPPED / "operations.py", folder)
    bag = DagBag(folder)
    assert not bag.import_errors
    assert sorted(bag.dags) == ["stillhouse_reconcile", "stillhouse_rollback"]
    code = (
        "import sys, importlib.util as u; "
        f"spec = u.spec_from_file_location('operations', {str(SHIPPED / 'operations.py')!r}); "
        "spec.loader.exec_module(u.module_from_spec(spec)); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_rollback_is_started_by_people_only() -> None:
    dag = dags()["stillhouse_rollback"]
    assert not dag.timetable.can_be_scheduled
    assert DagSerialization.to_dict(dag)["dag"]["allowed_run_types"] == ["manual"]
    assert dag.max_active_runs == 1


def test_reconciliation_runs_every_day_and_by_hand() -> None:
    dag = dags()["stillhouse_reconcile"]
    assert dag.timetable.can_be_scheduled
    assert DagSerialization.to_dict(dag)["dag"]["allowed_run_types"] == ["manual", "scheduled"]
    assert chosen_models(dag.params.dump()) == promoted_models(SHIPPED / "recipes")
    assert "quickstart-sentiment" in chosen_models(dag.params.dump())


@pytest.mark.parametrize(
    "wrong",
    [{"reason": ""}, {"reason": "   "}, {"reason": None}, {"model": "../x"}, {"version": 0}, {"version": "two"}],
)
def test_the_form_refuses_what_is_no_rollback(wrong: dict[str, Any]) -> None:
    params = dags()["stillhouse_rollback"].params
    right = {"model": "toy", "reason": "bad on Mondays", "version": None}
    for name, value in right.items():
        params[name] = value
    params.validate()
    (name, value), *_ = wrong.items()
    with pytest.raises(ParamValidationError):
        params[name] = value


def test_a_broken_recipe_costs_no_operation(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: [")
    assert promoted_models(tmp_path, tmp_path / "absent") == []
    assert len(build_operations(tmp_path)) == 2


def test_the_command_of_a_rollback_can_not_be_bent_by_its_parameters() -> None:
    operator = operator_class(RollbackOperator, LocalRuntime())(task_id="rollback")
    arguments = operator.arguments(context(None, model="toy", reason="--to=1; rm -rf", version=None))
    assert arguments == ("rollback", "toy", "--reason=--to=1; rm -rf", f"--by={NOBODY}")
    assert operator.arguments(context(model="toy", reason="bad", version=3))[-2:] == ("--by=ada", "--to=3")


@pytest.mark.slow
def test_without_a_server_there_is_nothing_to_do(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(AirflowSkipException, match="MLFLOW_TRACKING_URI"):
        ReconcileOperator(task_id="reconcile", model="toy").execute(context(repair=True))


@pytest.mark.slow
def test_a_refused_rollback_fails_with_its_reason(house: House) -> None:
    operator = operator_class(RollbackOperator, LocalRuntime())(task_id="rollback")
    with pytest.raises(DataRejected, match="does not load back"):  # these versions are hollow
        operator.execute(context(model=house.name, reason="bad on Mondays", version=None))
    with pytest.raises(ConfigurationError, match="is the champion"):
        operator.execute(context(model=house.name, reason="bad on Mondays", version=2))
    house.create_version("f" * 64)
    with pytest.raises(NotPermitted, match="never champion"):
        operator.execute(context(model=house.name, reason="bad on Mondays", version=3))
    assert house.champion() == "2"


@pytest.mark.slow
def test_an_absent_server_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TryAgain, match="does not answer"):
        operator_class(ReconcileOperator, LocalRuntime())(task_id="reconcile", model=house.name).execute(
            context(repair=True)
        )


@pytest.mark.slow
def test_reconciliation_tells_by_exit_code_and_words(house: House) -> None:
    operator = operator_class(ReconcileOperator, LocalRuntime())(task_id="reconcile", model=house.name)
    operator.execute(context(repair=True))
    house.client.set_registered_model_alias(house.name, "champion", "1")
    with pytest.raises(DataRejected, match="leads to version 1, and by the ledger it leads to version 2"):
        operator.execute(context(repair=True))
    shown = house.command("reconcile", house.name, "--no-repair")
    assert shown.returncode == ExitCode.DATA
    assert "champion-moved" in shown.stdout
    report = json.loads(house.command("reconcile", house.name, "--json").stdout)
    assert (report["schema_id"], report["status"], report["champion"]) == ("stillhouse/reconcile/1", "inconsistent", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rollback", "../x", "--reason=bad"), "lower-case words"),
        (("rollback", "toy", "--reason= "), "needs a reason"),
        (("reconcile", "toy", "--tracking="), "name the MLflow server"),
    ],
)
def test_wrong_commands_end_on_one_line(house: House, arguments: tuple[str, ...], message: str) -> None:
    answer = house.command(*arguments)
    assert answer.returncode == ExitCode.CONFIGURATION
    assert message in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_rollback_without_a_reason_is_refused_by_the_command(house: House) -> None:
    answer = house.command("rollback", "toy")
    assert answer.returncode == 2
    assert "--reason" in answer.stderr


@pytest.mark.slow
def test_a_rollback_at_the_terminal_settles_an_alias_moved_by_hand(house: House, tmp_path: Path) -> None:
    """Said by the same person with the same reason before it was killed, it goes on: that needs no files here."""
    history = house.ledger.verify()
    entry = house.ledger.append_rollback(
        history,
        artifact=history.actions[0].artifact,
        registered_version=1,
        champion_before=2,
        reason="bad on [Mondays]",
        who="ada",
        asked_version=None,
    )
    done = house.command("rollback", house.name, "--reason=bad on [Mondays]", "--by=ada")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "is version 1 already" in done.stdout
    assert f"ledger entry {entry.sequence}, by ada: bad on [Mondays]" in done.stdout
    assert house.champion() == "1"
    head = house.ledger.head()
    assert isinstance(head, RollbackEntry)
    assert house.ledger.verify().open is None
