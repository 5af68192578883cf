"""Whole trainings with a teacher: from the cache, beside the student, from a recipe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import write_workflow
from tiny_language import save, texts, tiny_causal, tiny_masked, tiny_tokenizer
from tiny_training import tiny_rows
from transformers import BertForMaskedLM, BertModel

from stillhouse.contract import ConfigurationError, DataRejected, HistoryPoint
from stillhouse.losses import build_loss
from stillhouse.models import load_model, load_tokenizer, model_shape, predict, tokenizer_sha256
from stillhouse.recipe import Recipe, StudentConfig, load_recipe, parse_recipe
from stillhouse.training import (
    TrainingJob,
    TrainingOutcome,
    distill,
    fit,
    guards,
    open_cache,
    prepare_teacher,
    start_student,
    train_arm,
    write_shard,
)

DIGESTS = {"teacher_sha256": "a" * 64, "data_sha256": "b" * 64}


def recipe_of(folder: Path, *, task: str = "causal-lm", **sections: Any) -> Recipe:
    """Return a language model's recipe in ``folder``, which holds its teacher and its texts."""
    masked = task == "masked-lm"
    teacher = tiny_masked(layers=3, seed=1) if masked else tiny_causal(layers=3, seed=1)
    save(teacher, tiny_tokenizer(masked=masked), folder / "teacher")
    rows = texts(160)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows["text"]))
    (folder / "policy.yaml").write_text("name: none\n")
    table = {"source": {"kind": "path", "path": "texts.jsonl"}, "format": "jsonl", "duplicates": "drop"}
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "max_tokens": 24, "checkpoint_seconds": 0}
    document = {
        "name": "tiny",
        "description": "A language model in miniature.",
        "task": task,
        "data": {
            "domain": "words",
            "train": {**table, "licence": "CC0-1.0", "origin": "generated"},
            "checks": {"min_rows": 10},
        },
        "teacher": {"source": {"kind": "path", "path": "teacher"}, "licence": "CC0-1.0"},
        "student": {"layers": 1},
        "distillation": {"alpha": 0.2, "temperature": 1.0},
        "training": training,
        "gate": {"policy": "policy.yaml"},
        "promotion": {"model": "tiny", "approval": "auto"},
    }
    return parse_recipe(document | sections, base=folder)


def arm_of(recipe: Recipe, folder: Path, workspace: Path, *, student: Any = None, **options: Any) -> TrainingOutcome:
    """Score the texts and train a fresh student on the cache."""
    teacher, tokenizer = load_model(folder / "teacher", task=recipe.task), load_tokenizer(folder / "teacher")
    rows = texts(80)
    write_shard(recipe, teacher, tokenizer, rows, workspace / "cache", **DIGESTS)
    cache = open_cache(recipe, [workspace / "cache"], teacher, tokenizer, rows, **DIGESTS)
    fresh = tiny_masked(layers=1) if recipe.task == "masked-lm" else tiny_causal(layers=1)
    return train_arm(
        recipe,
        "kd",
        student=student or fresh,
        tokenizer=tokenizer,
        rows=rows,
        teacher=teacher,
        teacher_tokenizer=tokenizer,
        cache=cache,
        workspace=workspace,
        **options,
    )


def curve(outcome: TrainingOutcome, term: str) -> list[float]:
    return [point.terms[term] for point in outcome.history.points]


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
@pytest.mark.parametrize("method", ["systematic", "random", "top-k"])
def test_student_learns_from_the_cache(tmp_path: Path, task: str, method: str) -> None:
    recipe = recipe_of(
        tmp_path,
        task=task,
        teacher={
            "source": {"kind": "path", "path": "teacher"},
            "licence": "CC0-1.0",
            "cache": {"method": method, "samples": 20},
        },
    )
    kd = curve(arm_of(recipe, tmp_path, tmp_path / "work"), "kd")
    assert np.mean(kd[-4:]) < 0.9 * np.mean(kd[:4])


def test_cache_of_whole_distributions_trains_as_a_teacher_beside(tmp_path: Path) -> None:
    """With top-k over the whole vocabulary only the rounding to float16 is left."""
    recipe = recipe_of(
        tmp_path,
        teacher={
            "source": {"kind": "path", "path": "teacher"},
            "licence": "CC0-1.0",
            "cache": {"method": "top-k", "samples": 38},
        },
        distillation={"alpha": 0.3, "temperature": 2.0},
    )
    cached = arm_of(recipe, tmp_path, tmp_path / "work")
    teacher, tokenizer = load_model(tmp_path / "teacher", task="causal-lm"), load_tokenizer(tmp_path / "teacher")
    beside = fit(
        TrainingJob(
            model=tiny_causal(layers=1),
            tokenizer=tokenizer,
            rows=texts(80),
            task="causal-lm",
            config=recipe.training,
            loss=build_loss(recipe.distillation, "kd"),
            teacher=teacher,
            workspace=tmp_path / "beside",
        )
    )
    for term in ("ce", "kd"):
        np.testing.assert_allclose(curve(cached, term), curve(beside, term), rtol=5e-3, atol=5e-4)


def test_cached_hidden_states_are_where_their_tokens_are(tmp_path: Path) -> None:
    """A student that is its own teacher has no distance to it, packed or not."""
    recipe = recipe_of(
        tmp_path,
        teacher={
            "source": {"kind": "path", "path": "teacher"},
            "licence": "CC0-1.0",
            "cache": {"method": "top-k", "samples": 38},
        },
        distillation={"alpha": 0.5, "features": [{"kind": "hidden"}]},
    )
    teacher, tokenizer = load_model(tmp_path / "teacher", task="causal-lm"), load_tokenizer(tmp_path / "teacher")
    rows = texts(30)
    write_shard(recipe, teacher, tokenizer, rows, tmp_path / "cache", **DIGESTS)
    cache = open_cache(recipe, [tmp_path / "cache"], teacher, tokenizer, rows, **DIGESTS)
    student = load_model(tmp_path / "teacher", task="causal-lm")
    loss = build_loss(recipe.distillation, "kd", student=model_shape(student), teacher=model_shape(teacher))
    config = recipe.training.model_copy(update={"epochs": 0.2, "learning_rate": 1e-9})
    outcome = fit(
        TrainingJob(
            model=student,
            tokenizer=tokenizer,
            rows=rows,
            task="causal-lm",
            config=config,
            loss=loss,
            cache=cache.scores,
            workspace=tmp_path / "work",
        )
    )
    assert max(curve(outcome, "hidden")) < 1e-4
    assert max(curve(outcome, "kd")) < 1e-2


def test_feature_terms_ask_the_teacher_beside(tmp_path: Path) -> None:
    features = [{"kind": "attention"}, {"kind": "qkv-relation", "heads": 2}, {"kind": "rkd"}, {"kind": "cka"}]
    recipe = recipe_of(tmp_path, distillation={"alpha": 0.5, "features": features, "balance": "gradient-norm"})
    outcome = arm_of(recipe, tmp_path, tmp_path / "work")
    first = outcome.history.points[0]
    assert first.terms.keys() == {"ce", "kd", "attention", "qkv-relation", "rkd", "cka"}
    assert first.term_gradient_norms.keys() == first.terms.keys()
    assert all(norm > 0 for norm in first.term_gradient_norms.values())


def test_adapters_alone_are_trained_and_merged(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, student={"layers": 1, "lora": {"rank": 2}})
    start = tiny_causal(layers=1).state_dict()
    outcome = arm_of(recipe, tmp_path, tmp_path / "work")
    trained = outcome.model.state_dict()
    assert trained.keys() == start.keys()
    changed = {name for name in start if not torch.equal(start[name], trained[name])}
    assert changed
    assert all(".layers." in name and name.endswith("proj.weight") for name in changed)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("on_policy", [False, True])
def test_stopped_after_any_step_it_ends_the_same(tmp_path: Path, on_policy: bool) -> None:
    signal: dict[str, Any] = {"alpha": 0.2, "balance": "gradient-norm"}
    if on_policy:
        signal |= {"on_policy": {"share": 0.5, "prompt_tokens": 2, "new_tokens": 4}}
    recipe = recipe_of(tmp_path, distillation=signal)
    whole = arm_of(recipe, tmp_path, tmp_path / "whole")

    def stop(point: HistoryPoint) -> None:
        if point.step == 4:
            raise Stopped

    with pytest.raises(Stopped):
        arm_of(recipe, tmp_path, tmp_path / "stopped", on_point=stop)
    resumed = arm_of(recipe, tmp_path, tmp_path / "stopped")
    assert resumed.resumed_from in (3, 4)
    assert resumed.history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


def test_loss_that_explodes_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that no training survives for long: the guard's patience is cut, since these models are hard to break."""
    monkeypatch.setattr(guards, "START_STEPS", 1)
    recipe = recipe_of(tmp_path, distillation={"alpha": 1.0})
    wild = {"learning_rate": 1.0, "explosion_factor": 1.001, "warmup_share": 0.0, "epochs": 6.0}
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update=wild)})
    with pytest.raises(DataRejected, match=r"the loss explodes at step \d+ \(term ce: .*lower training.learning_rate"):
        arm_of(recipe, tmp_path, tmp_path / "work")


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
def test_a_recipe_is_all_that_a_language_model_needs(tmp_path: Path, task: str) -> None:
    outcome = distill(recipe_of(tmp_path, task=task), tmp_path / "out")
    student = load_model(tmp_path / "out" / "student", task=task)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), outcome.model.parameters(), strict=True))
    assert model_shape(student).layers == 1


@pytest.mark.parametrize("student", [{"layers": 2}, {"layers": 2, "vocabulary": 30}])
def test_a_recipe_is_all_that_a_classifier_needs(tmp_path: Path, student: dict[str, int]) -> None:
    path = write_workflow(tmp_path, rows=600, student=student, distillation={"alpha": 0.5})
    recipe = load_recipe(path, {"training.epochs": 2, "teacher.finetune.epochs": 3})
    outcome = distill(recipe, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out" / "student")
    assert len(tokenizer) == student.get("vocabulary", len(load_tokenizer(tmp_path / "teacher")))
    found = predict(outcome.model, tokenizer, ["good film", "awful plot"], batch_size=2, max_tokens=16)
    assert np.isfinite(found.logits_NC).all()
    assert outcome.model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_a_synthesis_is_a_workflow(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, synthesis={"kind": "textbook"}, distillation={"alpha": 1.0})
    with pytest.raises(ConfigurationError, match="use: stillhouse run"):
        distill(recipe, tmp_path / "out")


@pytest.mark.parametrize(("task", "rows"), [("causal-lm", 4), ("masked-lm", 4)])
def test_history_says_how_many_rows_were_scored_again(tmp_path: Path, task: str, rows: int) -> None:
    assert arm_of(recipe_of(tmp_path, task=task), tmp_path, tmp_path / "work").history.canary_rows == rows


def test_teacher_without_a_head_for_the_task_learns_one_if_it_is_taught(tmp_path: Path) -> None:
    body = save(BertModel(tiny_masked(layers=3).config), tiny_tokenizer(masked=True), tmp_path / "body")
    teacher = {"source": {"kind": "path", "path": str(body)}, "licence": "CC0-1.0"}
    finetune = {"epochs": 1, "max_tokens": 24}
    taught = recipe_of(tmp_path, task="masked-lm", teacher=teacher | {"finetune": finetune})
    model, _ = prepare_teacher(taught, texts(), tmp_path / "out", tmp_path / "work")
    again = load_model(tmp_path / "out", task="masked-lm")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ConfigurationError, match="lacks"):
        prepare_teacher(recipe_of(tmp_path, task="masked-lm", teacher=teacher), texts(), tmp_path / "o", tmp_path / "w")
    watched = recipe_of(tmp_path, teacher=teacher | {"finetune": finetune | {"validation_points": 2}})
    with pytest.raises(ConfigurationError, match=r"teacher\.finetune\.validation_points"):
        prepare_teacher(watched, texts(), tmp_path / "o", tmp_path / "w")


def test_masked_student_becomes_a_classifier_of_its_teachers_kind(tmp_path: Path) -> None:
    path = write_workflow(tmp_path, rows=100)
    tokenizer = load_tokenizer(tmp_path / "teacher")
    teacher = load_model(tmp_path / "teacher", task="text-classification", labels=("negative", "positive"))
    general = BertForMaskedLM(teacher.config)
    save(general, tokenizer, tmp_path / "general")
    student = {"source": {"kind": "path", "path": str(tmp_path / "general")}}
    recipe = load_recipe(path).model_copy(update={"student": StudentConfig.model_validate(student)})
    rows = tiny_rows(20)
    start, own = start_student(recipe, teacher, tokenizer, rows, tmp_path / "work")
    assert start.model.config.id2label == {0: "negative", 1: "positive"}
    assert torch.equal(
        start.model.bert.encoder.layer[0].output.dense.weight, general.bert.encoder.layer[0].output.dense.weight
    )
    assert tokenizer_sha256(own) == tokenizer_sha256(tokenizer)


def test_other_texts_than_were_scored_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    teacher, tokenizer = load_model(tmp_path / "teacher", task="causal-lm"), load_tokenizer(tmp_path / "teacher")
    write_shard(recipe, teacher, tokenizer, texts(30), tmp_path / "cache", **DIGESTS)
    with pytest.raises(DataRejected, match="was scored as other tokens"):
        open_cache(recipe, [tmp_path / "cache"], teacher, tokenizer, texts(30, seed=2), **DIGESTS)
