"""The stage that judges: everything that earlier stages found reaches the gate and the report."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from findings import TIMINGS, classified, make_synthesis, make_terms
from imaginary import make_history, make_records

from stillhouse.contract import Decision, IntegrityCheck, StageRequest, pretty_json
from stillhouse.data.report import CheckResult, TableFacts, ValidationReport
from stillhouse.evaluation import write_records
from stillhouse.recipe import load_recipe
from stillhouse.stages import StageContext, decide
from stillhouse.store import FileStore, save_bytes, save_file

LEARNED = "0 rows of train share a text with a held-out set"


def report_of(outcome: str, table: str) -> ValidationReport:
    check = CheckResult(
        table=table,
        name="leak-test",
        expectation="expect_no_shared_texts",
        kwargs={},
        severity="critical",
        success=outcome == "pass",
        requirement="shares no text with the test set",
        message="" if outcome == "pass" else f"{table}: 3 rows are in the test set",
    )
    return ValidationReport(
        success=outcome == "pass",
        tables={"train": TableFacts(rows=700, labels={}, mean_characters=50.0, max_characters=90)},
        dropped={},
        checks=(check,),
        integrity=(IntegrityCheck.model_validate({"name": "leakage", "outcome": outcome, "detail": LEARNED}),),
    )


class Decided:
    """What the stage made of some reports."""

    def __init__(self, workflow: Path, root: Path, checks: list[str], **reports: Any) -> None:
        rule = {"kind": "integrity", "name": "sound", "checks": checks}
        policy = {"name": "tests", "description": "Of tests.", "rules": [rule]}
        (workflow.parent / "policy.yaml").write_text(yaml.safe_dump(policy))
        recipe = load_recipe(workflow)
        store = FileStore(root / "store")
        write_records([make_records(dict.fromkeys(classified().models, (0.8, 0.7)))], root / "records.parquet")
        given = {
            "summary": classified(),
            "timings": TIMINGS,
            "validation": report_of("pass", "train"),
            "history-kd": make_history("ce", "kd"),
        } | reports
        inputs = {name: save_bytes(store, f"{name}.json", pretty_json(report)) for name, report in given.items()}
        inputs |= {name: save_bytes(store, name, name.encode()) for name in ("kd", "docs", "data-train")}
        if "synthesis" in given:
            inputs["data-curated"] = save_bytes(store, "curated", b"rows")
        inputs["records"] = save_file(store, "records.parquet", root / "records.parquet")
        request = StageRequest(
            stage="decide", run_id="r1", task_id="decide", recipe=recipe.model_dump(mode="json"), inputs=inputs,
            parameters={"champion_sha256": "c" * 64},
            store=store.root,
        )  # fmt: skip
        context = StageContext(
            request=request,
            recipe=recipe,
            store=store,
            prefix="decide",
            workspace=root / "work",
            mlflow_run_id=None,
            report_progress=lambda progress: None,
            report_point=lambda point: None,
        )
        decide.run(context)
        self.decision = Decision.model_validate_json(self._read(store, "decide/decision.json"))
        self.page = self._read(store, "decide/report.html").decode()
        self.card = self._read(store, "decide/model-card.md").decode()

    def _read(self, store: FileStore, key: str) -> bytes:
        return store.get(key)

    @property
    def outcomes(self) -> dict[str, list[str]]:
        """By name of the check, in the order of the decision."""
        found: dict[str, list[str]] = {}
        for check in self.decision.checks:
            found.setdefault(check.name, []).append(check.outcome)
        return found


def test_what_was_written_is_judged_with_what_was_collected(workflow: Path, tmp_path: Path) -> None:
    decided = Decided(
        workflow,
        tmp_path,
        ["terms", "leakage", "synthesis", "canary"],
        terms=make_terms(),
        synthesis=make_synthesis(),
        curated=report_of("pass", "train"),
        **{"history-kd": make_history("ce", "kd").model_copy(update={"canary_rows": 64})},
    )
    assert decided.decision.verdict == "promote"
    assert decided.outcomes == {"terms": ["pass"], "leakage": ["pass"] * 2, "synthesis": ["pass"], "canary": ["pass"]}
    for document in (decided.page, decided.card):
        assert "train, written" in document
        assert "of what the teacher wrote: 0 rows of train share" in document
        assert "64 rows of the teacher&#39;s cache" in document or "64 rows of the teacher's cache" in document


def test_a_leak_in_the_written_data_alone_fails(workflow: Path, tmp_path: Path) -> None:
    decided = Decided(workflow, tmp_path, ["leakage"], synthesis=make_synthesis(), curated=report_of("fail", "train"))
    assert decided.outcomes["leakage"] == ["pass", "fail"]
    assert decided.decision.verdict == "reject"
    assert "train, written" in decided.page
    assert "3 rows are in the test set" in decided.page


@pytest.mark.parametrize("missing", ["terms", "canary", "synthesis"])
def test_a_check_that_was_not_made_is_none_that_passed(missing: str, workflow: Path, tmp_path: Path) -> None:
    decided = Decided(workflow, tmp_path, [missing])
    assert missing not in decided.outcomes
    assert decided.decision.verdict == "reject"
    assert decided.decision.rules[0].reason == f"the evidence has no {missing} check"


def test_a_teacher_that_may_not_be_learned_from_fails(workflow: Path, tmp_path: Path) -> None:
    terms = make_terms()
    unsigned = terms.findings[0].model_copy(update={"sign_off": None})
    decided = Decided(workflow, tmp_path, ["terms"], terms=terms.model_copy(update={"findings": (unsigned,)}))
    assert decided.decision.verdict == "reject"
