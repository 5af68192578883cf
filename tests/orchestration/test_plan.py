from typing import Any

import pytest

from stillhouse.orchestration.plan import PlannedTask, plan
from stillhouse.recipe import Recipe

TABLE = {"source": {"kind": "path", "path": "/rows.csv"}, "format": "csv", "licence": "MIT", "origin": "made up"}
PROMPTED = TABLE | {"prompt_column": "question"}
BASE: dict[str, Any] = {
    "name": "toy",
    "description": "A toy workflow.",
    "task": "causal-lm",
    "data": {"domain": "sums", "train": PROMPTED, "ood": [{"name": "hard", "table": PROMPTED}]},
    "teacher": {"source": {"kind": "path", "path": "/teacher"}, "licence": "MIT", "shards": 2},
    "student": {"layers": 3},
    "distillation": {"alpha": 1.0},
    "gate": {"policy": "/policy.yaml"},
    "promotion": {"model": "toy"},
}
SERVER = {
    "api": {"base_url": "http://127.0.0.1:1/v1", "model": "m"},
    "licence": "MIT",
    "terms": {"provider": "self-hosted"},
}


def tasks(**sections: Any) -> dict[str, PlannedTask]:
    recipe = Recipe.model_validate(BASE | sections)
    return {task.task_id: task for task in plan(recipe)}


def before(planned: dict[str, PlannedTask], task: str) -> set[str]:
    return {up for direct in planned[task].upstream for up in (direct, *before(planned, direct))}


@pytest.mark.parametrize("kind", ["answers", "traces", "rationales"])
def test_no_teacher_is_fetched_or_asked_before_its_terms_are_known(kind: str) -> None:
    planned = tasks(synthesis={"kind": kind})

    assert "permit" in before(planned, "prepare-teacher")
    assert all("permit" in before(planned, name) for name in planned if name.startswith("generate"))


def test_what_the_teacher_writes_is_what_the_candidate_learns() -> None:
    planned = tasks(synthesis={"kind": "traces", "controls": ["unfiltered", "sft"]})

    learned = {arm: planned[f"distill-{arm}"].inputs["train"] for arm in ("kd", "unfiltered", "sft")}
    assert learned == {"kd": ("curate", "train"), "unfiltered": ("curate", "unfiltered"), "sft": ("validate", "train")}
    assert planned["promote"].inputs["train"] == ("curate", "train")


def test_control_on_collected_data_does_not_wait_for_the_teachers_words() -> None:
    planned = tasks(synthesis={"kind": "traces", "controls": ["sft"]})

    assert "curate" not in before(planned, "distill-sft")
    assert "distill-unfiltered" not in planned


def test_every_held_out_set_guards_what_is_written() -> None:
    planned = tasks(synthesis={"kind": "answers"})

    assert {"validation", "test", "ood-hard", "answers-0", "answers-1"} <= planned["curate"].inputs.keys()


def test_workflow_of_a_server_has_no_weights_of_the_teacher() -> None:
    planned = tasks(teacher=SERVER, student={"source": {"kind": "path", "path": "/s"}}, synthesis={"kind": "answers"})

    assert "prepare-teacher" not in planned
    assert not any(name.startswith("teach-") for name in planned)
    assert not any("teacher" in task.inputs for task in planned.values())


def test_server_that_reports_probabilities_gives_the_candidate_a_cache() -> None:
    server = SERVER | {"api": SERVER["api"] | {"top_logprobs": 5}}  # type: ignore[operator]
    student = {"source": {"kind": "path", "path": "/s"}}
    planned = tasks(teacher=server, student=student, synthesis={"kind": "answers"}, distillation={"alpha": 0.5})

    assert planned["distill-kd"].inputs["cache-0"] == ("curate", "cache")
    assert planned["curate"].inputs["start"] == ("initialise", "model")
    assert "cache-0" not in planned["distill-sft"].inputs


def test_validation_set_is_read_in_training_only_if_it_is_watched() -> None:
    assert "validation" not in tasks()["distill-kd"].inputs
    assert tasks(training={"validation_points": 4})["distill-kd"].inputs["validation"] == ("validate", "validation")


def test_a_step_of_compression_may_begin_with_any_model_before_it_and_learn_the_lessons_of_the_student() -> None:
    steps = [
        {"kind": "prune-depth", "name": "half", "layers": 1, "heal": {}},
        {"kind": "sparsify", "name": "zeros", "heal": {"signal": "sft"}},
        {"kind": "quantize", "name": "int8"},
    ]
    planned = tasks(compression=steps, distillation={"alpha": 0.5})

    half, zeros, int8 = (planned[f"compress-{step['name']}"] for step in steps)
    assert half.inputs["kd"] == int8.inputs["kd"] == ("distill-kd", "model")
    assert half.inputs["cache-1"] == ("teach-1", "cache")
    assert not {"cache-0", "teacher"} & {*zeros.inputs, *int8.inputs}, "they don't learn from the teacher"
    assert int8.inputs["model-half"] == ("compress-half", "model")
    assert int8.inputs["step-zeros"] == ("compress-zeros", "step")
    assert "model-zeros" not in half.inputs


def test_every_step_is_evaluated_and_known_to_the_gate() -> None:
    planned = tasks(compression=[{"kind": "quantize", "name": "int8"}])

    for task in ("evaluate", "decide", "promote"):
        assert planned[task].inputs["model-int8"] == ("compress-int8", "model")
        assert planned[task].inputs["step-int8"] == ("compress-int8", "step")
