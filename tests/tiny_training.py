"""A tiny distillation, also as a process that can die: ``python tiny_training.py FOLDER OUT [STEP WHEN]``."""

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tiny import LABELS, NEUTRAL, sentence, write_teacher

from stillhouse.contract import HistoryPoint, pretty_json
from stillhouse.losses import build_loss
from stillhouse.models import (
    configure_torch,
    load_model,
    load_tokenizer,
    model_shape,
    predict,
    save_model,
    tokenizer_sha256,
)
from stillhouse.recipe import DistillationConfig, HiddenTerm, StudentConfig, TrainingConfig
from stillhouse.student import initialise
from stillhouse.teacher import CacheIdentity, TeacherCache, write_cache
from stillhouse.training import TrainingJob, fit

MAX_TOKENS = 24


def tiny_rows(count: int = 70, seed: int = 5) -> Dataset:
    """Return labelled sentences of varied length."""
    rng = random.Random(seed)
    labels = [rng.randint(0, 1) for _ in range(count)]
    texts = [sentence(rng, label, NEUTRAL) for label in labels]
    return Dataset.from_dict({"id": [f"d{i}" for i in range(count)], "text": texts, "label": labels})


def tiny_identity(tokenizer: Any, **changes: Any) -> CacheIdentity:
    """Return an identity with made-up digests."""
    plain = {
        "teacher_sha256": "a" * 64,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "data_sha256": "b" * 64,
        "labels": LABELS,
        "max_tokens": MAX_TOKENS,
        "hidden": True,
    }
    return CacheIdentity.model_validate(plain | changes)


def write_tiny_cache(
    folder: Path, model: Any, tokenizer: Any, rows: Dataset, *, shard: int = 0, num_shards: int = 1, **changes: Any
) -> CacheIdentity:
    """Score ``rows`` and write them as one shard."""
    identity = tiny_identity(tokenizer, **changes)
    predictions = predict(
        model, tokenizer, list(rows["text"]), batch_size=16, max_tokens=identity.max_tokens, hidden=identity.hidden
    )
    write_cache(
        folder,
        ids=list(rows["id"]),
        token_ids=predictions.token_ids,
        predictions=predictions,
        identity=identity,
        shard=shard,
        num_shards=num_shards,
    )
    return identity


def tiny_job(
    folder: Path,
    *,
    arm: str = "kd",
    on_point: Callable[[HistoryPoint], None] | None = None,
    rows: Dataset | None = None,
    **training: Any,
) -> TrainingJob:
    """Return a fresh job in ``folder``; a second one with the same arguments goes on where the first one was."""
    rows = tiny_rows() if rows is None else rows
    model_folder = write_teacher(folder / "teacher")
    teacher, tokenizer = (
        load_model(model_folder, task="text-classification", labels=LABELS),
        load_tokenizer(model_folder),
    )
    with torch.no_grad():
        teacher.classifier.weight *= 100  # a teacher of random weights says almost the same about every text
    identity = write_tiny_cache(folder / "cache", teacher, tokenizer, rows)
    config = {"epochs": 2.5, "batch_size": 16, "learning_rate": 1e-3, "max_tokens": MAX_TOKENS, "checkpoint_seconds": 0}
    student = initialise(StudentConfig(layers=2), teacher=teacher).model
    return TrainingJob(
        model=student,
        tokenizer=tokenizer,
        rows=rows,
        config=TrainingConfig.model_validate(config | training),
        loss=build_loss(
            DistillationConfig(features=(HiddenTerm(weight=0.5),)),
            arm,  # type: ignore[arg-type]
            student=model_shape(student),
            teacher=model_shape(teacher),
        ),
        cache=TeacherCache.open([folder / "cache"], identity),
        workspace=folder / "workspace",
        on_point=on_point,
    )


def die() -> None:
    """Leave without any clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, out: Path, step: int = 0, when: str = "never") -> None:
    """Train, and die after the optimizer step or within the checkpoint of ``step``."""
    configure_torch(threads=1, seed=0)
    if when == "checkpoint":
        from stillhouse.training import checkpoints

        digest = checkpoints.sha256_of_file

        def digest_or_die(path: Path) -> str:
            if path.parent.name == f"unfinished-{step:08d}":
                die()
            return digest(path)

        checkpoints.sha256_of_file = digest_or_die

    def die_at_point(point: HistoryPoint) -> None:
        if when == "step" and point.step == step:
            die()

    job = tiny_job(folder, on_point=die_at_point)
    outcome = fit(job)
    save_model(outcome.model, job.tokenizer, out)
    (out / "history.json").write_bytes(pretty_json(outcome.history))
    (out / "resumed_from").write_text(str(outcome.resumed_from))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(sys.argv[3]), sys.argv[4]) if len(sys.argv) > 3 else ())
