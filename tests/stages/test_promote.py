"""What stage ``promote`` asks for before it talks to any server, and what it writes on a version."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stillhouse.contract import Decision, NotPermitted, StageRequest, TermsReport, pretty_json
from stillhouse.recipe import load_recipe
from stillhouse.stages import StageContext, promote
from stillhouse.stages.origin import GIT_SHA, version_tags
from stillhouse.store import FileStore, save_bytes
from stillhouse.teacher.terms import load_terms, terms_report

DECISION = Decision(
    verdict="promote",
    candidate="kd",
    model_sha256="1" * 64,
    champion_sha256=None,
    policy="strict",
    policy_sha256="2" * 64,
    evidence_sha256="3" * 64,
    rules=(),
)
BOB = {
    "approved": True,
    "mode": "two-person",
    "by": "bob",
    "at": datetime(2026, 11, 24, tzinfo=UTC).isoformat(),
    "decision_sha256": DECISION.digest,
    "triggered_by": "ada",
}

Run = Callable[..., StageContext]


@pytest.fixture
def asked(workflow: Path, tmp_path: Path) -> Run:
    def context(approval: dict[str, Any] | None, mode: str) -> StageContext:
        recipe = load_recipe(workflow, overrides={"promotion.approval": mode})
        store = FileStore(tmp_path / "store")
        decision = save_bytes(store, "decision.json", pretty_json(DECISION))
        terms = save_bytes(store, "terms.json", pretty_json(terms_report(recipe, policy=load_terms())))
        other = save_bytes(store, "other", b"another model than the decision's")
        request = StageRequest(
            stage="promote",
            run_id="r1",
            task_id="promote",
            recipe=recipe.model_dump(mode="json"),
            parameters={"approval": approval},
            inputs={"decision": decision, "kd": other, "model-card": other, "train": other, "terms": terms},
            store=store.root,
            tracking_uri="http://127.0.0.1:9",
        )
        return StageContext(
            request=request,
            recipe=recipe,
            store=store,
            prefix="promote",
            workspace=tmp_path,
            mlflow_run_id="0",
            report_progress=lambda progress: None,
            report_point=lambda point: None,
        )

    return context


@pytest.mark.parametrize(
    ("approval", "mode", "message"),
    [
        (None, "human", "asks a person to approve"),
        (None, "two-person", "asks a person to approve"),
        (BOB | {"approved": False}, "two-person", "rejected"),
        (BOB | {"mode": "human"}, "two-person", "given without"),
        (BOB | {"by": "Ada"}, "two-person", "two persons are needed"),
        (BOB | {"decision_sha256": "0" * 64}, "human", "for another decision"),
    ],
)
def test_an_approval_that_does_not_fit_is_refused(
    asked: Run, approval: dict[str, Any] | None, mode: str, message: str
) -> None:
    with pytest.raises(NotPermitted, match=message):
        promote.run(asked(approval, mode))


def test_the_ledger_learns_who_approved_and_who_triggered() -> None:
    approval = promote._approval(BOB, "two-person", DECISION)
    assert (approval.mode, approval.who, approval.triggered_by) == ("two-person", "bob", "ada")


def test_a_version_says_where_it_comes_from(asked: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    context = asked(None, "auto")
    terms = TermsReport.model_validate_json(context.input("terms").read_bytes())
    tags = version_tags(context, DECISION, terms)
    assert tags["stillhouse.decision_sha256"] == DECISION.digest
    assert tags["stillhouse.train_sha256"] == context.request.inputs["train"].sha256
    assert tags["stillhouse.teacher_licence"] == context.recipe.teacher.licence
    assert '"kind"' in tags["stillhouse.teacher"]
    assert json.loads(tags["stillhouse.teachers"]) == [{"teacher": "teacher", "licence": "CC0-1.0", "provider": None}]
    assert tags["stillhouse.teacher.teacher"] == "teacher"
    assert tags["stillhouse.terms_sha256"] == context.request.inputs["terms"].sha256
    assert "sha256 " in tags["stillhouse.code"]
    monkeypatch.setenv(GIT_SHA, "abc123")
    assert version_tags(context, DECISION, terms)["stillhouse.code"].endswith("git abc123")
