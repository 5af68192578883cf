import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowSkipException, TaskAwaitingInput

from stillhouse.contract import (
    ConfigurationError,
    DataRejected,
    Decision,
    IntegrityError,
    NotPermitted,
    StageBug,
    StageResult,
    TryAgain,
    pretty_json,
    sha256_of,
)
from stillhouse.orchestration.airflow import RETRY_POLICY, PromotionApproval, StageKilled, StageOperator
from stillhouse.orchestration.airflow.runtimes import local, operator_class
from stillhouse.orchestration.containers import ContainerTask, Ended
from stillhouse.orchestration.places import airflow_place
from stillhouse.orchestration.plan import plan
from stillhouse.orchestration.runtimes import LocalRuntime
from stillhouse.recipe import RecipeError, load_recipe
from stillhouse.stages import read_records
from stillhouse.store import open_store, save_bytes
from stillhouse.teacher.terms import TERMS_FILE

FAKE_STAGE = Path(__file__).with_name("fake_stage.py")


class Run:
    """One workflow run without Airflow: its tasks share XComs in a dict."""

    def __init__(self, project: Path, recipe_file: Path, run_id: str = "r1", **params: Any) -> None:
        self.store = open_store(f"file://{project / 'store'}")
        self.recipe_file = recipe_file
        self.run_id = run_id
        self.params = {name.replace("__", "."): value for name, value in params.items()}
        self.xcoms: dict[tuple[str, int], Any] = {}
        self.dag_run = SimpleNamespace(triggering_user_name="ada", run_type="manual")

    def context(self) -> Any:
        def xcom_pull(*, task_ids: str, map_indexes: int = -1) -> Any:
            return self.xcoms.get((task_ids, map_indexes))

        return {
            "ti": SimpleNamespace(xcom_pull=xcom_pull),
            "task_instance": SimpleNamespace(id="0"),
            "params": self.params,
            "dag": SimpleNamespace(dag_id="toy"),
            "run_id": self.run_id,
            "dag_run": self.dag_run,
        }

    def stage(self, task_id: str) -> Any:
        operator = operator_class(StageOperator, LocalRuntime())(
            task_id=task_id, planned_task=task_id, recipe_file=str(self.recipe_file)
        )
        self.xcoms[airflow_place(task_id)] = operator.execute(self.context())
        return self.xcoms[airflow_place(task_id)]

    def up_to(self, last: str) -> None:
        for task in plan(load_recipe(self.recipe_file)):
            self.stage(task.task_id)
            if task.task_id == last:
                return

    def decided(self, verdict: str = "promote") -> None:
        """Leave behind what ``decide`` would."""
        decision = Decision(
            verdict=verdict,
            candidate="kd",
            model_sha256="1" * 64,
            champion_sha256=None,
            policy="toy",
            policy_sha256="2" * 64,
            evidence_sha256="3" * 64,
            rules=(),
        )
        outputs = {
            "decision": save_bytes(self.store, "decide/decision.json", pretty_json(decision)),
            "card": save_bytes(self.store, "decide/card.md", b"# Promote?"),
        }
        moment = datetime(2026, 1, 1, tzinfo=UTC)
        result = StageResult(
            stage="decide",
            key="4" * 64,
            outputs=outputs,
            summary=verdict,
            started_at=moment,
            finished_at=moment,
            seconds=0,
            cpu_seconds=0,
            peak_memory_bytes=0,
            code_version="5" * 64,
        )
        document = pretty_json(result)
        self.store.put("decide/result.json", document)
        self.xcoms["decide", -1] = {"uri": self.store.uri("decide/result.json"), "sha256": sha256_of(document)}

    def approve(self) -> Any:
        self.xcoms["approve", -1] = self.approval().execute(self.context())
        return self.xcoms["approve", -1]

    def approval(self) -> PromotionApproval:
        return PromotionApproval(task_id="approve", recipe_file=str(self.recipe_file))

    def record(self, task_id: str) -> Any:
        return read_records(self.store, f"toy__{self.run_id}")[task_id]


@pytest.fixture(autouse=True)
def deployment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_STORE", f"file://{project / 'store'}")
    monkeypatch.setenv("STILLHOUSE_WORK", str(project / "work"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite:////secret")

    def command(task: ContainerTask) -> tuple[str, ...]:
        return (sys.executable, str(FAKE_STAGE), *task.arguments[1:])

    monkeypatch.setattr(local, "local_command", command)


def behave(monkeypatch: pytest.MonkeyPatch, **told: dict[str, Any]) -> None:
    monkeypatch.setenv("FAKE_STAGE", json.dumps({name.replace("_", "-"): what for name, what in told.items()}))


def test_only_uri_and_digest_travel(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file)

    assert set(run.stage("validate")) == {"uri", "sha256"}
    assert run.record("validate").state == "succeeded"


def test_equal_work_is_reused_without_a_process(
    project: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(project, recipe_file).stage("validate")
    monkeypatch.setattr(local, "local_command", lambda *parts: pytest.fail("a process was started"))
    second = Run(project, recipe_file, run_id="r2")

    assert second.stage("validate") == first
    assert second.record("validate").state == "reused"
    assert "same content key" in second.record("validate").message


def test_changed_parameter_is_new_work(project: Path, recipe_file: Path) -> None:
    Run(project, recipe_file).up_to("distill-kd")
    other = Run(project, recipe_file, run_id="r2", distillation__alpha=0.9)
    other.up_to("distill-kd")

    assert other.record("initialise").state == "reused"
    assert other.record("distill-kd").state == "succeeded"


@pytest.mark.parametrize(
    ("told", "error", "code"),
    [
        ({"exit": 65}, DataRejected, 65),
        ({"exit": 75}, TryAgain, 75),
        ({"exit": 1}, StageBug, 70),
        ({"kill": True}, StageKilled, 137),
    ],
)
def test_failed_stage_raises_by_its_exit_code(
    project: Path,
    recipe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    error: type[Exception],
    code: int,
) -> None:
    behave(monkeypatch, validate=told)
    run = Run(project, recipe_file)

    with pytest.raises(error):
        run.stage("validate")
    assert run.record("validate").state == "failed"
    if "kill" in told:
        assert run.record("validate").exit_code == code


def test_killed_stage_succeeds_on_the_next_try(
    project: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(monkeypatch, validate={"kill": True, "times": 1})
    run = Run(project, recipe_file)

    with pytest.raises(StageKilled):
        run.stage("validate")
    run.stage("validate")
    assert run.record("validate").state == "succeeded"


def change(recipe_file: Path, **sections: object) -> None:
    document = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump(document | sections))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's limit on data")
def test_stage_that_needs_more_than_its_memory_is_not_tried_again(
    project: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(recipe_file, resources={"stages": {"validate": {"memory_gib": 4}}})
    behave(monkeypatch, validate={"allocate": 8})
    run = Run(project, recipe_file)

    with pytest.raises(ConfigurationError, match=r"raise resources\.stages\.validate\.memory_gib") as refused:
        run.stage("validate")

    assert run.record("validate").exit_code == 78
    assert RETRY_POLICY.evaluate(refused.value, try_number=1, max_tries=2).action is RetryAction.FAIL


def validate_ending(run: Run, ended: Ended, *, works: bool = True) -> Any:
    """Run ``validate`` in a container that ends like this, after its work or in place of it."""

    class Lost(operator_class(StageOperator, LocalRuntime())):  # type: ignore[misc]
        def _reuse(self, *about: Any) -> None:
            return None

        def run_container(self, *about: Any) -> Ended:
            if works:
                super().run_container(*about)
            return ended

    operator = Lost(task_id="validate", planned_task="validate", recipe_file=str(run.recipe_file))
    return operator.execute(run.context())


@pytest.mark.parametrize("code", [137, -9, 143])
def test_container_that_was_killed_after_its_work_has_done_it(project: Path, recipe_file: Path, code: int) -> None:
    run = Run(project, recipe_file)
    assert set(validate_ending(run, Ended(exit_code=code))) == {"uri", "sha256"}
    assert run.record("validate").state == "succeeded"


def test_killed_container_does_not_pass_with_what_another_request_did(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file)
    validate_ending(run, Ended(exit_code=0))
    run.params = {"distillation.alpha": 0.9}

    with pytest.raises(StageKilled):
        validate_ending(run, Ended(exit_code=137), works=False)
    assert run.record("validate").state == "failed"


def test_good_end_does_not_pass_with_what_another_request_did(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file)
    validate_ending(run, Ended(exit_code=0))
    run.params = {"distillation.alpha": 0.9}

    with pytest.raises(StageBug, match="recorded no result"):
        validate_ending(run, Ended(exit_code=0), works=False)


def test_failure_does_not_pass_although_the_work_was_done(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file)
    with pytest.raises(TryAgain):
        validate_ending(run, Ended(exit_code=75))


def test_container_out_of_memory_does_not_pass(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file)
    with pytest.raises(ConfigurationError, match="validate ran out of the memory of its machine"):
        validate_ending(run, Ended(exit_code=137, out_of_memory=True))


@pytest.mark.parametrize("code", [0, 137])
def test_result_whose_output_is_damaged_does_not_pass(project: Path, recipe_file: Path, code: int) -> None:
    run = Run(project, recipe_file)
    validate_ending(run, Ended(exit_code=0))
    outputs = [path for path in (project / "store" / "stages").rglob("*.json") if path.name != "result.json"]
    outputs[0].write_text("damaged")

    with pytest.raises(IntegrityError, match="missing or damaged"):
        validate_ending(run, Ended(exit_code=code), works=False)


def test_result_that_changed_under_its_digest_is_refused(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file)
    run.stage("validate")
    run.xcoms["validate", -1] = run.xcoms["validate", -1] | {"sha256": "0" * 64}

    with pytest.raises(IntegrityError, match="differs"):
        run.stage("prepare-teacher")
    assert run.record("prepare-teacher").exit_code == 65


def test_parameter_that_the_recipe_refuses_is_recorded(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file, student__nonsense=1)

    with pytest.raises(RecipeError):
        run.stage("validate")
    assert run.record("validate").exit_code == 78


def test_promotion_needs_a_tracking_server(project: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    with pytest.raises(AirflowSkipException, match="MLFLOW_TRACKING_URI"):
        Run(project, recipe_file).stage("announce")


def test_automatic_approval_names_the_decision(project: Path, recipe_file: Path) -> None:
    run = Run(project, recipe_file)
    run.decided()

    answer = run.approve()

    assert answer["approved"]
    assert answer["by"] == "automatic"
    assert len(answer["decision_sha256"]) == 64


@pytest.mark.parametrize("verdict", ["reject", "inconclusive"])
def test_nothing_is_approved_without_the_verdict(project: Path, recipe_file: Path, verdict: str) -> None:
    run = Run(project, recipe_file)
    run.decided(verdict)

    with pytest.raises(AirflowSkipException, match=verdict):
        run.approve()


def test_human_approval_shows_the_card_and_is_bound_to_the_decision(
    project: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **detail: asked.update(detail)
    )
    run = Run(project, recipe_file, promotion__approval="human", promotion__approval_hours=2)
    run.decided()

    with pytest.raises(TaskAwaitingInput) as parked:
        run.approve()

    assert parked.value.kwargs is not None
    shown = parked.value.kwargs["shown_sha256"]
    assert shown[:12] in asked["subject"]
    assert shown in asked["body"]
    assert "# Promote?" in asked["body"]
    assert "in MLflow](http" in asked["body"]
    assert asked["defaults"] == ["Reject"]
    assert parked.value.timeout.total_seconds() == 7200

    answer = {
        "chosen_options": ["Approve"],
        "params_input": {},
        "responded_at": datetime(2026, 1, 1, tzinfo=UTC),
        "responded_by_user": {"id": "1", "name": "ada"},
    }
    taken = run.approval().execute_complete(run.context(), answer, shown_sha256=shown)
    assert (taken["by"], taken["approved"], taken["decision_sha256"]) == ("ada", True, shown)
    assert (taken["mode"], taken["triggered_by"]) == ("human", "ada")
    with pytest.raises(DataRejected, match="ask again"):
        run.approval().execute_complete(run.context(), answer, shown_sha256="0" * 64)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the reviewer is shown."""
    shown: dict[str, Any] = {}
    monkeypatch.setattr(
        "airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **detail: shown.update(detail)
    )
    return shown


def two_persons(project: Path, recipe_file: Path, trigger: str | None, run_type: str = "manual") -> Run:
    run = Run(project, recipe_file, promotion__approval="two-person")
    run.dag_run = SimpleNamespace(triggering_user_name=trigger, run_type=run_type)
    run.decided()
    return run


def answered(run: Run, user: dict[str, str] | None, option: str = "Approve") -> dict[str, Any]:
    with pytest.raises(TaskAwaitingInput) as parked:
        run.approve()
    answer = {
        "chosen_options": [option],
        "params_input": {},
        "responded_at": datetime(2026, 1, 1, tzinfo=UTC),
        "responded_by_user": user,
    }
    return run.approval().execute_complete(run.context(), answer, **(parked.value.kwargs or {}))


def test_a_second_person_approves(project: Path, recipe_file: Path, asked: dict[str, Any]) -> None:
    taken = answered(two_persons(project, recipe_file, "ada"), {"id": "2", "name": "bob"})
    assert (taken["mode"], taken["approved"], taken["by"], taken["triggered_by"]) == ("two-person", True, "bob", "ada")
    assert "ada triggered this run and can't approve it" in asked["body"]


@pytest.mark.parametrize(
    "user", [{"id": "1", "name": "ada"}, {"id": "ada", "name": "Ada L."}, {"id": "1", "name": "ADA"}]
)
def test_the_same_person_does_not(project: Path, recipe_file: Path, asked: Any, user: dict[str, str]) -> None:
    with pytest.raises(NotPermitted, match="let another person answer"):
        answered(two_persons(project, recipe_file, "ada"), user)


def test_the_same_person_may_reject(project: Path, recipe_file: Path, asked: Any) -> None:
    taken = answered(two_persons(project, recipe_file, "ada"), {"id": "1", "name": "ada"}, "Reject")
    assert not taken["approved"]


def test_nobodys_answer_is_no_approval(project: Path, recipe_file: Path, asked: Any) -> None:
    with pytest.raises(NotPermitted, match="does not say who approved"):
        answered(two_persons(project, recipe_file, "ada"), None)
    assert not answered(two_persons(project, recipe_file, "ada"), None, "Reject")["approved"]


@pytest.mark.parametrize("run_type", ["scheduled", "asset_triggered"])
def test_what_no_person_triggered_needs_one_reviewer(
    project: Path, recipe_file: Path, asked: dict[str, Any], run_type: str
) -> None:
    taken = answered(two_persons(project, recipe_file, None, run_type), {"id": "1", "name": "ada"})
    assert (taken["mode"], taken["approved"], taken["triggered_by"]) == ("two-person", True, None)
    assert "Two persons" not in asked["body"]


@pytest.mark.parametrize("run_type", ["manual", "backfill"])
def test_a_run_of_an_unknown_person_has_no_second_one(
    project: Path, recipe_file: Path, asked: dict[str, Any], run_type: str
) -> None:
    with pytest.raises(NotPermitted, match="does not say who triggered this run"):
        two_persons(project, recipe_file, None, run_type).approve()
    assert not asked


@pytest.mark.parametrize("less", ["auto", "human"])
def test_a_run_can_not_ask_for_less_than_two_persons(project: Path, recipe_file: Path, less: str) -> None:
    document = yaml.safe_load(recipe_file.read_text())
    recipe_file.write_text(yaml.safe_dump(document | {"promotion": {"model": "toy", "approval": "two-person"}}))
    run = Run(project, recipe_file, promotion__approval=less)
    run.decided()
    with pytest.raises(NotPermitted, match="can't ask for less"):
        run.approve()


def test_stage_does_not_see_airflows_secrets(project: Path, recipe_file: Path) -> None:
    assert not any(name.startswith("AIRFLOW") for name in local.inherited_environment())


def test_stage_sees_the_deployments_terms_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TERMS_FILE, "/etc/terms.yaml")
    assert local.inherited_environment()[TERMS_FILE] == "/etc/terms.yaml"
