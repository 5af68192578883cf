import dataclasses
import math
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import tiny_job, tiny_rows, write_tiny_cache
from transformers import get_cosine_schedule_with_warmup

from stillhouse.contract import ConfigurationError, DataRejected, HistoryPoint, Progress, TryAgain
from stillhouse.losses import build_loss
from stillhouse.models import load_model, model_shape, predict
from stillhouse.recipe import DistillationConfig, HiddenTerm, TrainingConfig
from stillhouse.teacher import TeacherCache, write_cache
from stillhouse.training import TrainingOutcome, fit


class Stopped(Exception):
    pass


def weights(outcome: TrainingOutcome) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in outcome.model.state_dict().items()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def stop_at(step: int) -> Callable[[HistoryPoint], None]:
    def stop(point: HistoryPoint) -> None:
        if point.step == step:
            raise Stopped

    return stop


def test_training_learns_the_labels(tmp_path: Path) -> None:
    points = fit(tiny_job(tmp_path, arm="sft", epochs=20, learning_rate=3e-3, checkpoint_seconds=60)).history.points
    assert points[-1].terms["ce"] < 0.5 * points[0].terms["ce"]


def test_training_learns_from_the_teacher_and_says_how(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=10, checkpoint_seconds=60)
    shape = model_shape(job.model)
    config = DistillationConfig(alpha=0.0, features=(HiddenTerm(weight=0.5),))
    loss = build_loss(config, "kd", student=shape, teacher=shape)
    outcome = fit(dataclasses.replace(job, loss=loss))
    points = outcome.history.points
    last = points[-1]
    for term, factor in (("kd", 0.7), ("hidden", 1.0)):
        start, end = (sum(point.terms[term] for point in part) for part in (points[:5], points[-5:]))
        assert end < factor * start, term
    assert last.terms.keys() == {"ce", "kd", "hidden"}
    assert last.seen == 10 * 70
    assert last.epoch == 10
    assert last.step == outcome.history.total_steps == len(outcome.history.points) == 50
    assert last.loss == pytest.approx(last.terms["kd"] + 0.5 * last.terms["hidden"], rel=1e-5)
    assert outcome.samples_per_second > 0
    assert not outcome.model.training


def test_learning_rate_rises_then_falls_to_nearly_nothing(tmp_path: Path) -> None:
    points = fit(tiny_job(tmp_path, warmup_share=0.25)).history.points
    rates = [point.learning_rate for point in points]
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) == 4
    assert rates[0] == 0
    assert rates[-1] < 2e-4
    assert all(point.gradient_norm is not None and point.gradient_norm > 0 for point in points)


def test_cosine_schedule_is_that_of_transformers(tmp_path: Path) -> None:
    history = fit(tiny_job(tmp_path, warmup_share=0.25, schedule="cosine")).history
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.25 * history.total_steps), history.total_steps)
    expected = []
    for _ in history.points:
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [point.learning_rate for point in history.points] == pytest.approx(expected, rel=1e-12)


def test_same_job_gives_the_same_bits(tmp_path: Path) -> None:
    one, other = fit(tiny_job(tmp_path / "a")), fit(tiny_job(tmp_path / "b"))
    assert_same_bits(weights(one), weights(other))
    assert one.history == other.history
    assert not np.array_equal(
        weights(one)["classifier.weight"], weights(fit(tiny_job(tmp_path / "c", seed=99)))["classifier.weight"]
    )


def test_control_arm_runs_without_a_cache_on_the_same_steps(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, arm="sft")
    history = fit(dataclasses.replace(job, teacher=None)).history
    assert history.points[-1].terms.keys() == {"ce"}
    assert [p.seen for p in history.points] == [p.seen for p in fit(tiny_job(tmp_path / "kd")).history.points]


@pytest.mark.parametrize("step", [1, 2, 7, 12, 13])
def test_stopped_after_any_step_it_ends_the_same(tmp_path: Path, step: int) -> None:
    whole = fit(tiny_job(tmp_path / "whole"))
    with pytest.raises(Stopped):
        fit(tiny_job(tmp_path / "cut", on_point=stop_at(step)))
    torch.manual_seed(step)
    again = fit(tiny_job(tmp_path / "cut"))
    assert again.resumed_from == (step - 1 or None)
    assert_same_bits(weights(again), weights(whole))
    assert again.history == whole.history


def test_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first = fit(tiny_job(tmp_path))
    told: list[HistoryPoint] = []
    again = fit(tiny_job(tmp_path, on_point=told.append))
    assert again.resumed_from == first.history.total_steps
    assert told == []
    assert_same_bits(weights(again), weights(first))
    assert again.history == first.history


@pytest.mark.parametrize("damage", ["truncate", "flip", "no digests", "no tensors"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(tiny_job(tmp_path / "whole"))
    with pytest.raises(Stopped):
        fit(tiny_job(tmp_path / "cut", on_point=stop_at(8)))
    folder = tmp_path / "cut" / "workspace" / "checkpoints"
    newest = sorted(folder.glob("step-*"))[-1]
    assert newest.name == "step-00000007"
    tensors = newest / "tensors.safetensors"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "flip":
        data = bytearray(tensors.read_bytes())
        data[len(data) // 2] ^= 1
        tensors.write_bytes(data)
    else:
        (newest / "COMPLETE.json" if damage == "no digests" else tensors).unlink()
    again = fit(tiny_job(tmp_path / "cut"))
    assert again.resumed_from == 6
    assert "step-00000007 is passed over" in caplog.text
    assert_same_bits(weights(again), weights(whole))
    assert again.history == whole.history


def test_checkpoint_of_another_training_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(tiny_job(tmp_path, on_point=stop_at(8)))
    other = fit(tiny_job(tmp_path, learning_rate=2e-3))
    assert other.resumed_from is None
    assert_same_bits(weights(other), weights(fit(tiny_job(tmp_path / "fresh", learning_rate=2e-3))))


def test_checkpoints_are_few_and_no_unfinished_one_stays(tmp_path: Path) -> None:
    folder = tmp_path / "workspace" / "checkpoints"
    (folder / "unfinished-00000003").mkdir(parents=True)
    fit(tiny_job(tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000012", "step-00000013"]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_full_disk_asks_to_try_again_and_names_the_folder(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(TryAgain, match="checkpoints") as caught:
            fit(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(job.workspace) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((job.workspace / "checkpoints").iterdir()) == []
    assert fit(tiny_job(tmp_path)).resumed_from is None


def test_infinite_loss_stops_at_its_step_and_names_its_term(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, epochs=1)
    teacher = load_model(tmp_path / "teacher", task="text-classification", labels=("negative", "positive"))
    rows = job.rows
    predictions = predict(teacher, job.tokenizer, list(rows["text"]), batch_size=16, max_tokens=24, hidden=True)
    predictions.logits_NC[41] = np.inf
    assert job.cache is not None
    write_cache(
        tmp_path / "bad",
        ids=list(rows["id"]),
        token_ids=predictions.token_ids,
        predictions=predictions,
        identity=job.cache.identity,
        shard=0,
        num_shards=1,
    )
    job = dataclasses.replace(job, cache=TeacherCache.open([tmp_path / "bad"], job.cache.identity))
    points: list[HistoryPoint] = []
    job = dataclasses.replace(job, on_point=points.append)
    with pytest.raises(DataRejected, match=r"step (\d+) \(term kd\)") as caught:
        fit(job)
    assert f"step {len(points) + 1} " in str(caught.value)


def test_rows_that_the_teacher_never_saw_are_refused_before_the_first_step(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    assert job.cache is not None
    write_tiny_cache(
        tmp_path / "short",
        load_model(tmp_path / "teacher", task="text-classification", labels=("negative", "positive")),
        job.tokenizer,
        job.rows.select(range(69)),
    )
    job = dataclasses.replace(job, cache=TeacherCache.open([tmp_path / "short"], job.cache.identity))
    with pytest.raises(DataRejected, match="row d69 is not in the teacher's cache"):
        fit(job)


def test_label_out_of_range_is_named(tmp_path: Path) -> None:
    rows = tiny_rows(20)
    rows = rows.remove_columns("label").add_column("label", [0] * 13 + [2] + [1] * 6)
    with pytest.raises(DataRejected, match="row d13 has a label outside 0 to 1"):
        fit(tiny_job(tmp_path, rows=rows))


def test_more_tokens_than_positions_are_refused(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    job = dataclasses.replace(job, config=TrainingConfig(max_tokens=65))
    with pytest.raises(ConfigurationError, match="max_tokens is 65 and the model has 64 positions"):
        fit(job)


def test_progress_is_told_and_reaches_the_end(tmp_path: Path) -> None:
    told: list[Progress] = []
    job = tiny_job(tmp_path)
    job = dataclasses.replace(job, on_progress=told.append)
    fit(job)
    assert told[-1].done == told[-1].total == 13
    assert told[-1].seconds_left == 0
    assert told[-1].unit == "steps"
