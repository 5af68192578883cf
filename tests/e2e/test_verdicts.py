"""The gate through the real DAG: students and data that must not get into production, and one that must.

Airflow runs every task in processes as in production; a real MLflow server keeps the registry. The cases share one
store, so that what they have in common, such as the teacher, is made once.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import TAKES_MINUTES
from servers import mlflow_server
from tiny import write_csv, write_workflow

from stillhouse.contract import Decision, StageResult, TaskRecord
from stillhouse.promotion.ledger import Ledger
from stillhouse.store import fetch_artifact, open_store, read_artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * TAKES_MINUTES)]

ROOT = Path(__file__).parents[2]
MODEL = "tiny-student"
POLICY: dict[str, Any] = {
    "name": "verdicts",
    "description": "A modest student that learned something, judged on enough items.",
    "rules": [
        {"kind": "integrity", "name": "data-in-order", "checks": ["leakage", "contamination"]},
        {"kind": "bound", "name": "good-enough", "metric": "accuracy", "at_least": 0.65},
        {"kind": "beats-start", "name": "learned-something"},
        {"kind": "not-worse-than-champion", "name": "no-regression", "margin": 0.01},
        {"kind": "minimum-items", "name": "enough-items", "suites": "in-domain", "items": 200},
    ],
}


class Project:
    """Recipes of one folder, the DAGs that Airflow makes of them, and what their runs left."""

    def __init__(self, root: Path, tracking_uri: str) -> None:
        self.root = root
        self.recipes = root / "dags" / "recipes"
        self.store = open_store(f"file://{root / 'store'}")
        self._environment = os.environ | {
            "AIRFLOW_HOME": str(root / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
            "STILLHOUSE_STORE": f"file://{root / 'store'}",
            "STILLHOUSE_WORK": str(root / "work"),
            "MLFLOW_TRACKING_URI": tracking_uri,
        }

    def airflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "airflow", *arguments]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=TAKES_MINUTES, check=False
        )

    def run(self, name: str, **overrides: Any) -> "Outcome":
        """Run the base recipe with the dotted fields replaced, as a DAG of its own called ``name``."""
        recipe = yaml.safe_load((self.recipes / "base.yaml").read_text()) | {"name": name}
        for field, value in overrides.items():
            *path, last = field.split("__")
            section = recipe
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        (self.recipes / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        written = self.airflow("dags", "reserialize")
        assert written.returncode == 0, written.stdout[-3000:] + written.stderr[-3000:]
        before = len(self.ledger().verify().actions)
        done = self.airflow("dags", "test", name)
        (run,) = (self.root / "store" / "runs").glob(f"{name}*")
        records = {
            path.stem: TaskRecord.model_validate_json(path.read_bytes()) for path in (run / "tasks").glob("*.json")
        }
        return Outcome(records, promoted=len(self.ledger().verify().actions) > before, log=done.stdout + done.stderr)

    def ledger(self) -> Ledger:
        return Ledger(self.store, MODEL)


class Outcome:
    """What a DAG run came to."""

    def __init__(self, records: dict[str, TaskRecord], *, promoted: bool, log: str) -> None:
        self.records = records
        self.promoted = promoted
        self.log = log

    def result(self, task: str) -> StageResult:
        record = self.records.get(task)
        assert record is not None, f"{task} did not run:\n{self.log[-4000:]}"
        assert record.result is not None, record.message
        return StageResult.model_validate_json(Path(record.result.uri.removeprefix("file://")).read_bytes())

    @property
    def decision(self) -> Decision:
        return Decision.model_validate_json(read_artifact(self.result("decide").outputs["decision"]))

    def failed_rules(self) -> set[str]:
        return {rule.rule for rule in self.decision.rules if rule.outcome == "fail"}


def shuffle_labels(table: Path, target: Path) -> Path:
    """Write a copy of a table whose labels have nothing to do with its texts."""
    head, *rows = table.read_text().splitlines()
    parts = [row.rsplit(",", 1) for row in rows]
    labels = [label for _, label in parts]
    random.Random(5).shuffle(labels)
    lines = [head, *(f"{text},{label}" for (text, _), label in zip(parts, labels, strict=True))]
    target.write_text("\n".join(lines) + "\n")
    return target


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("verdicts")
    (root / "mlflow").mkdir()
    with mlflow_server(root / "mlflow") as server:
        project = Project(root, server.url)
        project.recipes.mkdir(parents=True)
        shutil.copy(ROOT / "dags" / "distillation.py", root / "dags")
        written = write_workflow(project.recipes, rows=500)
        write_csv(project.recipes / "test.csv", rows=400, seed=11, prefix="t")
        recipe = yaml.safe_load(written.read_text())
        written.unlink()
        table = recipe["data"]["train"] | {"duplicates": "drop"}
        recipe["data"] |= {
            "train": table,
            "test": table | {"source": {"kind": "path", "path": "test.csv"}, "duplicates": "reject"},
            "ood": [],
        }
        recipe["student"] = {"architecture": {"num_hidden_layers": 2}}  # random weights: there is much to learn
        recipe["distillation"] = {"control_arm": False}
        recipe["teacher"]["shards"] = 1
        recipe["promotion"] = {"model": MODEL, "approval": "auto"}
        (project.recipes / "policy.yaml").write_text(yaml.safe_dump(POLICY))
        (project.recipes / "base.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        assert project.airflow("db", "migrate").returncode == 0
        yield project


@pytest.fixture(scope="module")
def champion(project: Project) -> Outcome:
    """The first student: nothing is wrong with it."""
    return project.run("sound")


def test_a_sound_student_is_promoted(champion: Outcome, project: Project) -> None:
    assert champion.decision.verdict == "promote", champion.decision.rules
    assert champion.promoted
    head = project.ledger().head()
    assert head is not None
    assert head.artifact.sha256 == champion.decision.model_sha256


def test_a_student_of_shuffled_labels_is_rejected(champion: Outcome, project: Project) -> None:
    shuffle_labels(project.recipes / "films.csv", project.recipes / "shuffled.csv")
    source = {"kind": "path", "path": "shuffled.csv"}
    outcome = project.run("shuffled", data__train__source=source)
    assert outcome.decision.verdict == "reject"
    assert {"good-enough", "no-regression"} <= outcome.failed_rules()
    assert not outcome.promoted


def test_a_student_worse_than_its_start_is_rejected(champion: Outcome, project: Project) -> None:
    good = fetch_artifact(champion.result("distill-kd").outputs["model"], project.root / "cache")
    shutil.copytree(good, project.recipes / "good", ignore=shutil.ignore_patterns("MANIFEST.json"))
    outcome = project.run(
        "spoiled",
        student={"source": {"kind": "path", "path": "good"}},
        training__learning_rate=1.0,
        training__explosion_factor=1000.0,
    )
    assert outcome.decision.verdict == "reject"
    assert "learned-something" in outcome.failed_rules()
    assert not outcome.promoted


def test_a_leaking_test_set_stops_the_run_before_anything_is_trained(champion: Outcome, project: Project) -> None:
    head, *rows = (project.recipes / "test.csv").read_text().splitlines()
    leaked = (project.recipes / "films.csv").read_text().splitlines()[1:6]
    (project.recipes / "leaking.csv").write_text("\n".join([head, *rows, *leaked]) + "\n")
    table = yaml.safe_load((project.recipes / "base.yaml").read_text())["data"]["train"]
    outcome = project.run(
        "leaking",
        data__train__duplicates="reject",
        data__test=table | {"source": {"kind": "path", "path": "leaking.csv"}},
    )
    assert outcome.records["validate"].exit_code == 65
    assert "whose text is also in test" in outcome.records["validate"].message
    assert not {"distill-kd", "decide"} & set(outcome.records)
    assert not outcome.promoted


def test_too_few_test_items_settle_nothing(champion: Outcome, project: Project) -> None:
    lines = (project.recipes / "test.csv").read_text().splitlines()
    (project.recipes / "few.csv").write_text("\n".join(lines[:61]) + "\n")
    outcome = project.run("few", data__test__source={"kind": "path", "path": "few.csv"})
    assert outcome.decision.verdict == "inconclusive"
    assert outcome.records["distill-kd"].state == "reused"
    assert not outcome.promoted


def test_a_challenger_slightly_worse_than_the_champion_stays_outside(champion: Outcome, project: Project) -> None:
    outcome = project.run("challenger", training__epochs=3)
    decision = outcome.decision
    assert decision.champion_sha256 == champion.decision.model_sha256
    (rule,) = (rule for rule in decision.rules if rule.rule == "no-regression")
    assert rule.value is not None
    assert -0.1 < rule.value.value < 0
    assert rule.outcome != "pass"
    assert decision.verdict != "promote"
    assert not outcome.promoted
    assert {entry.artifact.sha256 for entry in project.ledger().verify().actions} == {champion.decision.model_sha256}
