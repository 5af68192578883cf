"""The model of cost and time: right by hand, in proportion, and what the page shows."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.orchestration.estimate import ASSUMPTIONS, H100, JOBS, Job, estimate, render

PAGE = Path(__file__).parents[2] / "infra" / "SCALING.md"
LARGEST = JOBS[-1]


def with_(job: Job, **changes: float) -> Job:
    return Job.model_validate(job.model_dump() | changes)


def test_the_largest_job_is_what_a_pocket_calculator_says() -> None:
    assert (LARGEST.tokens, LARGEST.teacher, LARGEST.student) == (100e9, 70e9, 8e9)
    found = estimate(LARGEST, H100)
    scoring = 2 * 70e9 * 100e9 / (989e12 * 0.40) / 3600
    training = 6 * 8e9 * 100e9 / (989e12 * 0.35) / 3600
    assert found.device_hours == pytest.approx(scoring + 2 * training)
    assert found.score_hours == pytest.approx(scoring / 128)
    assert found.train_hours == pytest.approx(training / 128)
    assert found.cost == pytest.approx(2.5 * (scoring + 2 * training))
    assert found.cache == pytest.approx(2.901e12)
    assert found.teacher_devices == 5  # 280 GB in float32, of 64 GB in each


@given(factor=st.integers(2, 1000))
def test_hours_and_bytes_grow_with_the_tokens_and_devices_share_the_hours(factor: int) -> None:
    job = JOBS[1]
    once = estimate(job, H100)
    more = estimate(with_(job, tokens=factor * job.tokens), H100)
    assert more.device_hours == pytest.approx(factor * once.device_hours)
    assert more.cache == pytest.approx(factor * once.cache)
    spread = estimate(with_(job, devices=factor * job.devices, shards=factor * job.shards), H100)
    assert spread.device_hours == pytest.approx(once.device_hours)
    assert spread.score_hours == pytest.approx(once.score_hours / factor)
    assert spread.moved > once.moved  # every shard reads the teacher and the texts


def test_fewer_shards_than_devices_leave_devices_idle_and_one_device_exchanges_nothing() -> None:
    job = JOBS[1]
    assert estimate(with_(job, shards=2), H100).score_hours == pytest.approx(4 * estimate(job, H100).score_hours)
    assert estimate(JOBS[0], H100).traffic_share == 0
    assert estimate(with_(job, batch=job.batch / 4), H100).traffic_share == pytest.approx(
        4 * estimate(job, H100).traffic_share
    )


def test_a_job_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens"):
        Job(name="none", tokens=0, teacher=1, student=1, devices=1, shards=1)


def test_the_page_shows_what_the_model_says_today_and_claims_no_measured_gpu() -> None:
    page = PAGE.read_text()
    assert [table for table in render().strip().split("\n\n") if table not in page] == []
    measured = {assumption.what for assumption in ASSUMPTIONS if assumption.kind == "measured"}
    assert measured == {"cache"}
