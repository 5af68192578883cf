from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stillhouse.contract import (
    Artifact,
    Decision,
    Progress,
    ResultRef,
    StageRequest,
    StageResult,
    TaskRecord,
    canonical_json,
)
from stillhouse.recipe import RecipeError, load_recipe

RECIPE = Path(__file__).parents[2] / "dags" / "recipes" / "quickstart.yaml"
DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=20)
ARTIFACTS = st.builds(
    Artifact, uri=WORDS, sha256=DIGEST, num_bytes=st.integers(0, 2**50), kind=st.sampled_from(["file", "tree"])
)


@given(st.dictionaries(WORDS, ARTIFACTS, max_size=3), st.dictionaries(WORDS, st.integers() | WORDS, max_size=3))
def test_a_request_survives_the_journey_through_a_file(inputs: Any, parameters: Any) -> None:
    request = StageRequest(
        stage="teach", run_id="r", task_id="teach-0", recipe={"name": "x"}, store="file:///s", inputs=inputs,
        parameters=parameters,
    )  # fmt: skip
    assert StageRequest.model_validate_json(canonical_json(request)) == request


def test_a_request_carries_the_whole_recipe() -> None:
    recipe = load_recipe(RECIPE)
    request = StageRequest(
        stage="validate", run_id="r", task_id="validate", recipe=recipe.model_dump(mode="json"), store="file:///s"
    )
    assert StageRequest.model_validate_json(canonical_json(request)).parsed_recipe() == recipe


def test_a_request_without_a_valid_recipe_says_so() -> None:
    request = StageRequest(stage="validate", run_id="r", task_id="validate", recipe={"name": "x"}, store="file:///s")
    with pytest.raises(RecipeError, match=r"request\.recipe: "):
        request.parsed_recipe()


@given(
    st.sampled_from(["running", "succeeded", "reused", "failed"]),
    st.none() | st.builds(Progress, done=st.floats(0, 1e9), total=st.floats(1, 1e9), unit=WORDS),
    st.none() | st.builds(ResultRef, uri=WORDS, sha256=DIGEST),
    st.integers(0, 10**9),
)
def test_a_task_record_survives_the_journey_through_a_file(state: Any, progress: Any, result: Any, second: int) -> None:
    record = TaskRecord(
        run_id="r", task_id="t", stage="distill", state=state, progress=progress, result=result,
        updated_at=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second),
    )  # fmt: skip
    assert TaskRecord.model_validate_json(canonical_json(record)) == record


def test_a_replaced_record_is_validated_and_the_old_one_stays() -> None:
    record = TaskRecord(
        run_id="r", task_id="t", stage="distill", state="running", updated_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert record.replace(state="failed", exit_code=65).exit_code == 65
    assert record.state == "running"
    with pytest.raises(ValidationError):
        record.replace(state="lost")
    with pytest.raises(ValidationError):
        record.replace(colour="red")


@pytest.mark.parametrize(
    "change", [{"sha256": "x"}, {"sha256": "A" * 64}, {"num_bytes": -1}, {"kind": "link"}, {"extra": 1}]
)
def test_an_artifact_that_pins_nothing_is_refused(change: dict[str, Any]) -> None:
    valid = {"uri": "file:///a", "sha256": "a" * 64, "num_bytes": 0}
    Artifact.model_validate(valid)
    with pytest.raises(ValidationError):
        Artifact.model_validate(valid | change)


def test_a_result_is_always_a_success() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    valid: dict[str, Any] = {
        "stage": "decide", "key": "a" * 64, "summary": "done", "started_at": now, "finished_at": now, "seconds": 1.0,
        "cpu_seconds": 1.0, "peak_memory_bytes": 1, "code_version": "b" * 64,
    }  # fmt: skip
    result = StageResult.model_validate(valid)
    assert StageResult.model_validate_json(canonical_json(result)) == result
    for change in ({"status": "failed"}, {"seconds": float("nan")}, {"metrics": {"x": float("inf")}}):
        with pytest.raises(ValidationError):
            StageResult.model_validate(valid | change)


def test_the_digest_of_a_decision_changes_with_what_was_decided() -> None:
    decision = Decision(
        verdict="reject", candidate="kd", model_sha256="a" * 64, champion_sha256=None, policy="p",
        policy_sha256="b" * 64, evidence_sha256="c" * 64, rules=(),
    )  # fmt: skip
    changed = decision.model_copy(update={"verdict": "promote"})
    assert Decision.model_validate_json(canonical_json(decision)).digest == decision.digest
    assert changed.digest != decision.digest
