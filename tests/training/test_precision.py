"""A teacher whose weights are rounded to bfloat16: it scores, is found again in its cache, and teaches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import write_workflow
from tiny_language import save, texts, tiny_causal, tiny_masked, tiny_tokenizer, write_language_workflow

from stillhouse.contract import DataRejected
from stillhouse.models import load_model
from stillhouse.recipe import Recipe, load_recipe
from stillhouse.training import distill, open_cache, write_shard

DIGESTS = {"teacher_sha256": "a" * 64, "data_sha256": "b" * 64}
ROUNDED = {"teacher.precision": "bfloat16"}


def opened(recipe: Recipe, scorer: Any, canary: Any, folder: Path) -> None:
    """Score with one teacher and look again with another."""
    tokenizer = tiny_tokenizer(masked=recipe.task == "masked-lm")
    write_shard(recipe, scorer, tokenizer, texts(80), folder, **DIGESTS)
    open_cache(recipe, [folder], canary, tokenizer, texts(80), **DIGESTS)


@pytest.mark.parametrize("masked", [False, True])
def test_the_teacher_finds_itself_in_its_cache_and_no_other(tmp_path: Path, masked: bool) -> None:
    recipe = load_recipe(write_language_workflow(tmp_path, masked=masked), ROUNDED)
    make, task = (tiny_masked, "masked-lm") if masked else (tiny_causal, "causal-lm")
    for seed in (1, 2):
        save(make(seed=seed), tiny_tokenizer(masked=masked), tmp_path / str(seed))
    teacher, other = (load_model(tmp_path / str(seed), task=task, precision="bfloat16") for seed in (1, 2))
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    opened(recipe, teacher, teacher, tmp_path / "cache")
    with pytest.raises(DataRejected, match="of its probability differ"):
        opened(recipe, teacher, other, tmp_path / "other")


def test_a_cache_of_another_precision_is_refused(tmp_path: Path) -> None:
    path = write_language_workflow(tmp_path)
    teacher, tokenizer, rows = tiny_causal(seed=1), tiny_tokenizer(), texts(80)
    write_shard(load_recipe(path), teacher, tokenizer, rows, tmp_path / "cache", **DIGESTS)
    with pytest.raises(DataRejected, match="dtype"):
        open_cache(load_recipe(path, ROUNDED), [tmp_path / "cache"], teacher, tokenizer, rows, **DIGESTS)


@pytest.mark.parametrize("live", [False, True])
def test_a_student_learns_from_it_nearly_the_same(tmp_path: Path, live: bool) -> None:
    """From its cache, and from what it says beside the student about attention."""
    small = {
        "data.checks.min_rows": 10,
        "training.epochs": 1,
        "distillation.features": [{"kind": "attention", "weight": 0.1}] if live else [],
    }
    path = write_workflow(tmp_path, rows=200)
    curves = []
    for name, precision in {"plain": {}, "rounded": ROUNDED}.items():
        outcome = distill(load_recipe(path, small | precision), tmp_path / name)
        assert {parameter.dtype for parameter in outcome.model.parameters()} == {torch.float32}
        curves.append([list(point.terms.values()) for point in outcome.history.points])
    plain, rounded = np.asarray(curves[0]), np.asarray(curves[1])
    assert (plain != rounded).any()
    np.testing.assert_allclose(rounded, plain, rtol=0.05, atol=1e-3)
