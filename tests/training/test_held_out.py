"""The loss on held-out data during a training."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_language import texts, tiny_causal, tiny_masked, tiny_tokenizer
from tiny_training import tiny_job, tiny_rows

from stillhouse.contract import HistoryPoint
from stillhouse.losses import build_loss
from stillhouse.models import documents_of, likelihoods, predict
from stillhouse.recipe import DistillationConfig, TrainingConfig
from stillhouse.training import TrainingJob, TrainingOutcome, fit
from stillhouse.training.held_out import due_steps


class Stopped(Exception):
    pass


def job(folder: Path, *, points: int = 4, masked: bool = False, stop: int = -1, **config: Any) -> TrainingJob:
    def on_point(point: HistoryPoint) -> None:
        if point.step == stop:
            raise Stopped

    plain = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "max_tokens": 24, "checkpoint_seconds": 0}
    return TrainingJob(
        model=tiny_masked() if masked else tiny_causal(attention_dropout=0.3),
        tokenizer=tiny_tokenizer(masked=masked),
        rows=texts(),
        validation=texts(11, seed=7),
        task="masked-lm" if masked else "causal-lm",
        config=TrainingConfig.model_validate(plain | {"validation_points": points} | config),
        loss=build_loss(DistillationConfig(), "sft"),
        workspace=folder,
        on_point=on_point,
    )


def assert_same(one: TrainingOutcome, other: TrainingOutcome) -> None:
    for mine, its in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(mine, its)


@given(total=st.integers(1, 500), points=st.integers(2, 60))
def test_points_reach_from_start_to_end_at_even_distances(total: int, points: int) -> None:
    due = sorted(due_steps(total, points))
    assert (due[0], due[-1]) == (0, total)
    assert len(due) == min(points, total + 1)
    distances = np.diff(due)
    assert distances.max() - distances.min() <= 1


def test_one_point_is_the_start() -> None:
    assert due_steps(40, 1) == {0}


@pytest.mark.parametrize("masked", [False, True])
def test_first_and_last_point_are_the_loss_before_and_after(tmp_path: Path, masked: bool) -> None:
    made = job(tmp_path, masked=masked)
    assert made.validation is not None
    documents = documents_of(
        made.task, made.tokenizer, made.validation, max_tokens=24, mask_share=0.15, seed=made.config.seed
    )

    def loss() -> float:
        found = likelihoods(made.model, made.tokenizer, documents, batch_size=5, max_tokens=24)
        return float(found.losses_N.sum() / found.targets_N.sum())

    before = loss()
    history = fit(made).history
    first, last = history.validation[0], history.validation[-1]
    assert (first.step, first.tokens, last.step) == (0, 0, history.total_steps)
    assert first.loss == pytest.approx(before, rel=1e-5)
    assert last.loss == pytest.approx(loss(), rel=1e-5)
    assert last.loss < first.loss
    assert first.targets == sum(len(document.targets_P) for document in documents)
    assert len(history.validation) == 4
    if not masked:
        assert last.tokens == 2 * sum(
            len(d.ids_L)
            for d in documents_of("causal-lm", made.tokenizer, made.rows, max_tokens=24, mask_share=0.15, seed=0)
        )


def test_a_classifier_is_measured_too(tmp_path: Path) -> None:
    rows = tiny_rows(30, seed=8)
    made = dataclasses.replace(tiny_job(tmp_path, validation_points=3), validation=rows)
    history = fit(made).history
    found = predict(made.model, made.tokenizer, list(rows["text"]), batch_size=8, max_tokens=24)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(found.logits_NC), torch.tensor(list(rows["label"])))
    assert history.validation[-1].loss == pytest.approx(float(expected), rel=1e-5)
    assert {point.targets for point in history.validation} == {30}


def test_measuring_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    watched, alone = fit(job(tmp_path / "watched")), fit(job(tmp_path / "alone", points=0))
    assert_same(watched, alone)
    assert watched.history.points == alone.history.points
    assert alone.history.validation == ()


@pytest.mark.parametrize("step", [1, 5, 6, 20])
def test_stopped_anywhere_it_has_the_same_points(tmp_path: Path, step: int) -> None:
    whole = fit(job(tmp_path / "whole"))
    with pytest.raises(Stopped):
        fit(job(tmp_path / "cut", stop=min(step, whole.history.total_steps)))
    again = fit(job(tmp_path / "cut"))
    assert again.resumed_from == (min(step, whole.history.total_steps) - 1 or None)
    assert again.history == whole.history
    assert_same(again, whole)


def test_a_finished_training_is_not_measured_again(tmp_path: Path) -> None:
    first = fit(job(tmp_path))
    assert fit(job(tmp_path)).history == first.history
