"""Content keys cover the code and the settings that a result depends on, and nothing else."""

from pathlib import Path
from typing import Any

import grimp
import pytest
from tiny_language import write_language_workflow, write_quiz

from stillhouse.contract import Artifact, StageRequest
from stillhouse.recipe import load_recipe
from stillhouse.stages import CATALOG, key_of

PLUMBING = ("recipe", "contract", "store", "stages.context")
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("stillhouse")


@pytest.mark.parametrize("name", list(CATALOG))
def test_a_stage_names_all_code_that_can_change_its_result(name: str, graph: grimp.ImportGraph) -> None:
    spec = CATALOG[name]
    reached = graph.find_upstream_modules(spec.module)
    known = [f"stillhouse.{place}" for place in (*PLUMBING, *spec.code)]
    missing = {m for m in reached if not any(m == place or m.startswith(f"{place}.") for place in known)}
    missing -= {"stillhouse"} | {place.rpartition(".")[0] for place in known if place.count(".") > 1}
    assert missing == set()


def request(workflow: Path, stage: str, parameters: dict[str, Any], **overrides: Any) -> StageRequest:
    dotted = {field.replace("__", "."): value for field, value in overrides.items()}
    return StageRequest(
        stage=stage,
        run_id="r",
        task_id=stage,
        recipe=load_recipe(workflow, dotted).model_dump(mode="json"),
        parameters=parameters,
        inputs={"train": Artifact(uri="file:///a", sha256=DIGEST, num_bytes=1)},
        store="file:///nowhere",
    )


def test_the_control_arm_does_not_depend_on_the_teachers_signal(workflow: Path) -> None:
    changed = {"distillation__alpha": 0.9, "distillation__temperature": 4.0}
    sft, kd = ({"arm": "sft"}, {"arm": "kd"})
    assert key_of(request(workflow, "distill", sft)) == key_of(request(workflow, "distill", sft, **changed))
    assert key_of(request(workflow, "distill", kd)) != key_of(request(workflow, "distill", kd, **changed))


@pytest.mark.parametrize("arm", ["kd", "unfiltered"])
def test_who_learns_from_words_does_not_depend_on_where_they_came_from(tmp_path: Path, arm: str) -> None:
    synthesis = {"kind": "answers", "controls": ["unfiltered"]}
    path = write_language_workflow(tmp_path, synthesis=synthesis, distillation={"alpha": 1.0})
    plain = request(path, "distill", {"arm": arm})
    for changed in ({"distillation__temperature": 4.0}, {"teacher__batch_size": 3}, {"synthesis__temperature": 0.1}):
        assert key_of(plain) == key_of(request(path, "distill", {"arm": arm}, **changed))
    for changed in ({"training__schedule": "cosine"}, {"training__validation_points": 3}):
        assert key_of(plain) != key_of(request(path, "distill", {"arm": arm}, **changed))
    assert key_of(request(path, "teach", {})) == key_of(
        request(path, "teach", {}, training__validation_points=3, training__schedule="cosine")
    )


def test_who_learns_from_a_servers_distributions_depends_on_which_they_are(tmp_path: Path) -> None:
    api = {"base_url": "https://api.example.com/v1", "model": "big", "top_logprobs": 5}
    path = write_language_workflow(
        tmp_path,
        synthesis={"kind": "answers"},
        teacher={"api": api, "licence": "proprietary", "terms": {"provider": "openai"}},
        student={"source": {"kind": "path", "path": "teacher"}},
        distillation={"alpha": 0.5, "temperature": 1.0},
    )
    plain = key_of(request(path, "distill", {"arm": "kd"}))
    assert plain == key_of(request(path, "distill", {"arm": "kd"}, teacher__api__concurrency=2))
    for changed in ({"teacher__api__top_logprobs": 6}, {"teacher__api__model": "other"}, {"distillation__alpha": 0.4}):
        assert plain != key_of(request(path, "distill", {"arm": "kd"}, **changed))
    sft = request(path, "distill", {"arm": "sft"})
    assert key_of(sft) == key_of(request(path, "distill", {"arm": "sft"}, teacher__api__model="other"))


def test_stages_that_act_on_the_world_have_a_result_for_each_run(workflow: Path) -> None:
    ours = request(workflow, "announce", {})
    assert key_of(ours) != key_of(ours.model_copy(update={"run_id": "another"}))
    assert key_of(request(workflow, "validate", {})) == key_of(
        request(workflow, "validate", {}).model_copy(update={"run_id": "another"})
    )


def test_a_changed_source_file_changes_the_key_and_a_moved_one_does_not(workflow: Path, tmp_path: Path) -> None:
    before = key_of(request(workflow, "validate", {}))
    moved = workflow.parent.rename(tmp_path / "elsewhere") / workflow.name
    assert key_of(request(moved, "validate", {})) == before
    with (moved.parent / "films.csv").open("a") as file:
        file.write("extra,a good film,positive\n")
    assert key_of(request(moved, "validate", {})) != before


def test_the_files_of_a_benchmark_are_part_of_the_evaluations_key(tmp_path: Path) -> None:
    def key(folder: Path) -> str:
        harness = {"tasks": ["Tiny_Quiz"], "source": {"kind": "path", "path": str(folder)}}
        return key_of(request(recipe, "evaluate", {}, evaluation__harness=harness))

    recipe = write_language_workflow(tmp_path)
    before = key(write_quiz(tmp_path / "quiz"))
    assert key((tmp_path / "quiz").rename(tmp_path / "elsewhere")) == before
    with (tmp_path / "elsewhere" / "quiz.jsonl").open("a") as file:
        file.write("\n")
    assert key(tmp_path / "elsewhere") != before


def test_a_changed_policy_changes_the_decision_and_no_training(workflow: Path) -> None:
    before = {stage: key_of(request(workflow, stage, {"arm": "kd"})) for stage in ("decide", "distill")}
    policy = workflow.parent / "policy.yaml"
    policy.write_text(policy.read_text().replace("0.6", "0.7"))
    after = {stage: key_of(request(workflow, stage, {"arm": "kd"})) for stage in ("decide", "distill")}
    assert after["decide"] != before["decide"]
    assert after["distill"] == before["distill"]


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("prepare-teacher", "teacher__shards", 1),
        ("prepare-teacher", "student__layers", 1),
        ("distill", "schedule__cron", "0 3 * * 1"),
        ("evaluate", "description", "Other words."),
    ],
)
def test_what_a_stage_does_not_read_changes_nothing(workflow: Path, stage: str, field: str, value: Any) -> None:
    plain = request(workflow, stage, {"arm": "kd"})
    assert key_of(plain) == key_of(request(workflow, stage, {"arm": "kd"}, **{field: value}))


def test_what_a_teacher_says_depends_on_the_precision_of_its_weights(tmp_path: Path) -> None:
    path = write_language_workflow(tmp_path, synthesis={"kind": "answers"}, distillation={"alpha": 1.0})
    for stage in ("teach", "generate", "curate"):
        rounded = request(path, stage, {}, teacher__precision="bfloat16")
        assert key_of(request(path, stage, {})) != key_of(rounded)
    for stage, parameters in {"initialise": {}, "distill": {"arm": "sft"}, "evaluate": {}}.items():
        rounded = request(path, stage, parameters, teacher__precision="bfloat16")
        assert key_of(request(path, stage, parameters)) == key_of(rounded)


def test_a_classifier_is_not_scored_again_for_another_temperature(workflow: Path) -> None:
    shard = {"shard": 0, "shards": 1, "hidden": False}
    changed = {"distillation__temperature": 4.0, "distillation__alpha": 0.9, "training__epochs": 1}
    assert key_of(request(workflow, "teach", shard)) == key_of(request(workflow, "teach", shard, **changed))
    assert key_of(request(workflow, "teach", shard)) != key_of(request(workflow, "teach", shard | {"hidden": True}))
    longer = key_of(request(workflow, "teach", shard, training__max_tokens=40))
    assert longer != key_of(request(workflow, "teach", shard))
