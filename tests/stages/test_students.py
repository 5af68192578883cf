"""Stages ``initialise`` and ``distill`` where the teacher is a server, or says words alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_language import save, texts, tiny_causal, tiny_tokenizer

from stillhouse.contract import Artifact, ConfigurationError, StageRequest, TrainingHistory
from stillhouse.data import freeze, load_frozen
from stillhouse.models import documents_of, load_tokenizer
from stillhouse.recipe import CacheConfig, Recipe, parse_recipe
from stillhouse.stages import run_stage
from stillhouse.stages.records import read_result
from stillhouse.store import open_store, read_artifact, save_file, save_tree
from stillhouse.teacher import score_documents, server_cache_identity, write_sparse_cache

SERVER = {"base_url": "https://api.example.com/v1", "model": "big"}


def recipe_of(folder: Path, *, top_logprobs: int = 0, **sections: Any) -> Recipe:
    table = {"source": {"kind": "path", "path": "/rows.csv"}, "format": "csv", "licence": "MIT", "origin": "made up"}
    document = {
        "name": "toy",
        "description": "A toy workflow.",
        "task": "causal-lm",
        "data": {"domain": "words", "train": table | {"prompt_column": "question"}},
        "teacher": {
            "api": SERVER | {"top_logprobs": top_logprobs},
            "licence": "proprietary",
            "terms": {"provider": "openai"},
        },
        "student": {"source": {"kind": "path", "path": str(folder / "own")}, "layers": 2, "layer_map": "lower"},
        "synthesis": {"kind": "answers"},
        "distillation": {"alpha": 0.0 if top_logprobs else 1.0, "temperature": 1.0},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "max_tokens": 24},
        "gate": {"policy": "/policy.yaml"},
        "promotion": {"model": "toy"},
    }
    return parse_recipe(document | sections, base=Path("/"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tiny_causal(layers=3), tiny_tokenizer(), tmp_path / "own")
    for name, seed in (("train", 1), ("validation", 2)):
        frame = texts(40, seed=seed).to_pandas()
        freeze(frame.assign(prompt=[text.split()[0] for text in frame["text"]]), tmp_path / f"{name}.parquet")
    return tmp_path


def given(folder: Path, name: str) -> Artifact:
    store, path = open_store(f"file://{folder / 'store'}"), folder / name
    return save_tree(store, f"given/{name}", path) if path.is_dir() else save_file(store, f"given/{name}", path)


def run(
    folder: Path, recipe: Recipe, stage: str, inputs: dict[str, Artifact], **parameters: str
) -> dict[str, Artifact]:
    request = StageRequest(
        stage=stage,
        run_id="run-1",
        task_id="-".join([stage, *parameters.values()]),
        recipe=recipe.model_dump(mode="json"),
        parameters=parameters,
        inputs=inputs,
        store=f"file://{folder / 'store'}",
    )
    return read_result(run_stage(request, work=folder / "work")).outputs


def history(outputs: dict[str, Artifact]) -> TrainingHistory:
    return TrainingHistory.model_validate_json(read_artifact(outputs["history"]))


def test_student_of_a_server_starts_from_its_own_checkpoint(folder: Path) -> None:
    inputs = {"train": given(folder, "train.parquet")}
    outputs = run(folder, recipe_of(folder), "initialise", inputs)
    found = load_file(Path(outputs["model"].uri.removeprefix("file://")) / "model.safetensors")
    own = load_file(folder / "own" / "model.safetensors")
    assert torch.equal(found["model.layers.1.mlp.up_proj.weight"], own["model.layers.1.mlp.up_proj.weight"])
    assert not any(name.startswith("model.layers.2") for name in found)


@pytest.mark.parametrize("arm", ["kd", "unfiltered"])
def test_words_alone_need_no_teacher(folder: Path, arm: str) -> None:
    recipe = recipe_of(folder)
    inputs = {"train": given(folder, "train.parquet")}
    start = run(folder, recipe, "initialise", inputs)["model"]
    told = history(run(folder, recipe, "distill", inputs | {"start": start}, arm=arm))
    assert told.points[-1].terms.keys() == {"ce"}
    assert told.points[-1].terms["ce"] < told.points[0].terms["ce"]
    assert told.canary_rows is None


def test_validation_points_are_in_the_history_of_the_stage(folder: Path) -> None:
    plain = recipe_of(folder)
    recipe = plain.model_copy(update={"training": plain.training.model_copy(update={"validation_points": 3})})
    inputs = {"train": given(folder, "train.parquet")}
    inputs["start"] = run(folder, recipe, "initialise", inputs)["model"]
    with pytest.raises(ConfigurationError, match="needs input 'validation'"):
        run(folder, recipe, "distill", inputs, arm="kd")
    inputs["validation"] = given(folder, "validation.parquet")
    told = history(run(folder, recipe, "distill", inputs, arm="kd"))
    assert [point.step for point in told.validation] == [0, told.total_steps // 2, told.total_steps]


def test_what_a_server_reported_of_its_distributions_is_imitated(folder: Path) -> None:
    recipe = recipe_of(folder, top_logprobs=5)
    inputs = {"train": given(folder, "train.parquet")}
    inputs["start"] = run(folder, recipe, "initialise", inputs)["model"]
    tokenizer = load_tokenizer(folder / "own")
    identity = server_cache_identity(
        recipe, tokenizer, data_sha256=inputs["train"].sha256, vocabulary_size=len(tokenizer)
    )
    documents = documents_of(
        "causal-lm", tokenizer, load_frozen(folder / "train.parquet"), max_tokens=24, mask_share=0.15, seed=0
    )
    scored = score_documents(
        tiny_causal(layers=1, seed=1),
        documents,
        [list(range(len(documents)))],
        config=CacheConfig(method="top-k", samples=5),
        temperature=1.0,
        vocabulary=len(tokenizer),
    )
    write_sparse_cache(folder / "cache", scored, identity=identity, shard=0, num_shards=1)
    inputs["cache-0"] = given(folder, "cache")
    told = history(run(folder, recipe, "distill", inputs, arm="kd"))
    assert told.points[-1].terms["kd"] < told.points[0].terms["kd"]
    assert told.canary_rows is None


def test_distributions_of_a_server_are_compared_at_temperature_one(folder: Path) -> None:
    recipe = recipe_of(folder, top_logprobs=5, distillation={"alpha": 0.4, "temperature": 2.0})
    with pytest.raises(ConfigurationError, match="set it to 1"):
        server_cache_identity(recipe, load_tokenizer(folder / "own"), data_sha256="a" * 64, vocabulary_size=38)


def test_shipped_history_reads_without_the_newer_fields() -> None:
    old = {"schema_id": "stillhouse/training-history/1", "total_steps": 1, "points": []}
    read = TrainingHistory.model_validate_json(json.dumps(old))
    assert (read.validation, read.canary_rows) == ((), None)
