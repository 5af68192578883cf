"""Stillhouse's side of a comparison: what the stages of a workflow do, and a training behind a gate.

`prepare` does all that comes before the training, with its time; run as a program, this trains:
``python benchmarks/ours.py WORKSPACE``.
"""

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from peers.gate import Gate

from stillhouse.contract import sha256_of_file
from stillhouse.data import freeze, load_frozen
from stillhouse.models import configure_torch, encode, load_model, load_tokenizer, save_model
from stillhouse.recipe import Recipe
from stillhouse.store import describe_tree
from stillhouse.teacher import CacheManifest
from stillhouse.training import open_cache, prepare_teacher, start_student, train_arm, write_shard
from stillhouse.training.batches import StepLoader
from stillhouse.training.knowledge import recipe_documents

TOKENS = "tokens.npz"
"""In the workspace: what `peers/sides.py` trains on."""


def digests(workspace: Path) -> dict[str, str]:
    """Return what ties the teacher's cache to its teacher and data."""
    return {
        "teacher_sha256": describe_tree(workspace / "teacher").sha256,
        "data_sha256": sha256_of_file(workspace / "train.parquet"),
    }


def prepare(recipe: Recipe, table: pd.DataFrame, workspace: Path) -> tuple[CacheManifest, float]:
    """Write the teacher, the student it starts as, the data and the teacher's cache.

    Returns:
        What is in the cache, and the seconds that it took.
    """
    freeze(table, workspace / "train.parquet")
    rows = load_frozen(workspace / "train.parquet")
    (workspace / "recipe.json").write_text(recipe.model_dump_json())
    teacher, _ = prepare_teacher(recipe, rows, workspace / "teacher", workspace)
    tokenizer = load_tokenizer(workspace / "teacher")
    start, own_tokenizer = start_student(recipe, teacher, tokenizer, rows, workspace)
    save_model(start.model, own_tokenizer, workspace / "student")
    started = time.perf_counter()
    manifest = write_shard(recipe, teacher, tokenizer, rows, workspace / "cache", **digests(workspace))
    return manifest, time.perf_counter() - started


def write_tokens(recipe: Recipe, workspace: Path) -> list[int]:
    """Write the tokens that we train on, for the others, and return the length of each document."""
    rows = load_frozen(workspace / "train.parquet")
    tokenizer = load_tokenizer(workspace / "student")
    arrays: dict[str, Any]
    if recipe.task == "text-classification":
        documents = encode(tokenizer, list(rows["text"]), recipe.training.max_tokens).ids
        arrays = {"labels": np.asarray(rows["label"])}
    else:
        documents, arrays = [document.ids_L for document in recipe_documents(recipe, tokenizer, rows)], {}
    lengths = [len(ids) for ids in documents]
    flat = np.concatenate([np.asarray(ids) for ids in documents])
    np.savez(workspace / TOKENS, ids=flat, lengths=np.asarray(lengths), **arrays)
    return lengths


def step_loader(recipe: Recipe, lengths: list[int]) -> StepLoader:
    """Return the same plan of steps as the training's.

    Args:
        recipe: Of the training.
        lengths: Tokens of each document.
    """
    samples: Any = SimpleNamespace(lengths=lengths, targets=lengths)
    return StepLoader(samples, recipe.training, packed=recipe.task == "causal-lm" and recipe.training.packing)


def command(workspace: Path) -> list[str]:
    """Return the command of this side."""
    return [sys.executable, __file__, str(workspace)]


def main() -> None:
    """Train as stage ``distill`` does, the look at the teacher's cache included, until the gate has had enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    workspace = arguments.workspace
    recipe = Recipe.model_validate_json((workspace / "recipe.json").read_text())
    configure_torch(threads=arguments.threads, seed=recipe.training.seed)
    rows, tokenizer = load_frozen(workspace / "train.parquet"), load_tokenizer(workspace / "student")
    teacher, student = (
        load_model(workspace / name, task=recipe.task, labels=recipe.data.labels) for name in ("teacher", "student")
    )
    cache = open_cache(recipe, [workspace / "cache"], teacher, tokenizer, rows, **digests(workspace))
    with np.load(workspace / TOKENS, allow_pickle=False) as file:
        loader = step_loader(recipe, file["lengths"].tolist())
    Gate(plan=(loader.seen, loader.tokens))
    train_arm(
        recipe,
        "kd",
        student=student,
        tokenizer=tokenizer,
        rows=rows,
        teacher=teacher,
        teacher_tokenizer=tokenizer,
        cache=cache,
        workspace=workspace / "training",
    )


if __name__ == "__main__":
    main()
