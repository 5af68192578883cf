"""Intervals and tests against known values, scipy, and simulation."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from stillhouse.evaluation import significance
from stillhouse.evaluation.significance import (
    bootstrap_estimate,
    mcnemar_p_value,
    proportion_estimate,
    resampled_sums,
)


def test_resampling_is_paired_all_columns_take_the_same_items() -> None:
    column_N1 = np.random.default_rng(0).integers(0, 2, (50, 1)).astype(np.float64)
    sums_RK = resampled_sums(np.hstack([column_N1, 1 - column_N1]), resamples=100, seed=1, stream="movies")
    assert (sums_RK.sum(axis=1) == 50).all()
    assert len(np.unique(sums_RK[:, 0])) > 5


def test_resampling_depends_on_seed_and_stream_but_not_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    columns_NK = np.arange(40.0).reshape(20, 2)

    def draw(seed: int = 1, stream: str = "movies") -> np.ndarray:
        return resampled_sums(columns_NK, resamples=30, seed=seed, stream=stream)

    whole = draw()
    assert not np.array_equal(whole, draw(seed=2))
    assert not np.array_equal(whole, draw(stream="tweets"))
    monkeypatch.setattr(significance, "CHUNK_CELLS", 7 * 20)
    assert np.array_equal(whole, draw())


def test_intervals_agree_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(3)
    differences_N = rng.choice([-1.0, 0.0, 1.0], 500, p=[0.08, 0.86, 0.06])
    values_R = resampled_sums(differences_N[:, None], resamples=8000, seed=0, stream="x")[:, 0] / 500
    ours = bootstrap_estimate(float(differences_N.mean()), values_R, confidence=0.95, n=500)
    theirs = bootstrap((differences_N,), np.mean, n_resamples=8000, method="BCa", rng=np.random.default_rng(0))
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.003)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.05)


def test_a_biased_bootstrap_is_corrected() -> None:
    values_R = np.random.default_rng(0).normal(0.5, 1.0, 20_000)  # the figure is 0: resamples lie half a deviation up
    estimate = bootstrap_estimate(0.0, values_R, confidence=0.95, n=100)
    assert estimate.low == pytest.approx(-0.5 - 1.96, abs=0.1)
    assert estimate.high == pytest.approx(-0.5 + 1.96, abs=0.1)


def test_a_figure_that_never_varies_has_an_interval_of_no_width() -> None:
    estimate = bootstrap_estimate(0.0, np.zeros(100), confidence=0.95, n=10)
    assert (estimate.low, estimate.high, estimate.standard_error) == (0.0, 0.0, 0.0)


def test_undefined_resamples_are_left_out() -> None:
    values_R = np.array([np.nan, np.inf, *np.linspace(0, 1, 99)])
    assert bootstrap_estimate(0.5, values_R, confidence=0.9, n=10).low == pytest.approx(0.05, abs=0.01)


def test_wilsons_interval_by_hand() -> None:
    # Wilson 1927 for 8 of 10 at 95 %.
    estimate = proportion_estimate(8, 10, confidence=0.95)
    assert estimate.value == 0.8
    assert (estimate.low, estimate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert estimate.standard_error == pytest.approx(np.sqrt(0.8 * 0.2 / 10))


def test_all_right_is_not_certainly_right() -> None:
    assert proportion_estimate(40, 40, confidence=0.95).low < 0.95


def test_mcnemars_test_by_hand() -> None:
    correct_N = np.array([True] * 8 + [False] * 2 + [True] * 5)
    baseline_N = np.array([False] * 8 + [True] * 2 + [True] * 5)
    # 8 against 2 discordant items: 2 * P(X <= 2) for X ~ Binomial(10, 1/2).
    assert mcnemar_p_value(correct_N, baseline_N) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar_p_value(correct_N, correct_N) == 1.0


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """400 simulated suites: coverage of a nominal 95 % interval lies within three of its own standard errors, 3.3 %."""
    rng = np.random.default_rng(11)
    truth = {"difference": -0.02, "retention": 0.84 / 0.86, "accuracy": 0.84}
    covered = dict.fromkeys(truth, 0)
    rounds, n = 400, 500
    for number in range(rounds):
        kind_N = rng.choice(4, n, p=[0.80, 0.06, 0.04, 0.10])  # both right, only the teacher, only the student, none
        teacher_N, student_N = np.isin(kind_N, [0, 1]), np.isin(kind_N, [0, 2])
        columns_NK = np.stack([teacher_N, student_N], axis=1).astype(np.float64)
        sums_RK = resampled_sums(columns_NK, resamples=500, seed=number, stream="movies")
        teacher, student = columns_NK.sum(axis=0)
        estimates = {
            "difference": bootstrap_estimate(
                (student - teacher) / n, (sums_RK[:, 1] - sums_RK[:, 0]) / n, confidence=0.95, n=n
            ),
            "retention": bootstrap_estimate(student / teacher, sums_RK[:, 1] / sums_RK[:, 0], confidence=0.95, n=n),
            "accuracy": proportion_estimate(int(student), n, confidence=0.95),
        }
        for name, estimate in estimates.items():
            covered[name] += estimate.low <= truth[name] <= estimate.high
    shares = {name: count / rounds for name, count in covered.items()}
    assert all(share == pytest.approx(0.95, abs=0.033) for share in shares.values()), shares
