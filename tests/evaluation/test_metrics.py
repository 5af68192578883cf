"""Metrics from column sums are the textbook metrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import foldnorm
from sklearn.metrics import brier_score_loss, f1_score, log_loss

from stillhouse.evaluation.metrics import (
    calibration_bins,
    ece,
    ece_columns,
    f1_columns,
    fixed_point,
    folded_mean,
    macro_f1,
    mean,
    squared_distances,
)
from stillhouse.evaluation.significance import Draws


def total(columns_NK: np.ndarray) -> np.ndarray:
    return columns_NK.sum(axis=0, keepdims=True)


def calibration_error(confidences_N: np.ndarray, correct_N: np.ndarray, num_bins: int) -> float:
    return float(ece(total(ece_columns(confidences_N, correct_N, num_bins)))[0])


def plain_calibration_error(confidences_N: np.ndarray, correct_N: np.ndarray, num_bins: int) -> float:
    bins_N = calibration_bins(confidences_N, num_bins)
    gaps = [(confidences_N - correct_N)[bins_N == number].sum() for number in range(num_bins)]
    return float(np.abs(gaps).sum() / len(bins_N))


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(1, 60))
def test_macro_f1_is_scikit_learns_over_the_labels_that_occur(seed: int, num_labels: int, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    labels_N, answers_N = rng.integers(0, num_labels, (2, num_items))
    expected = f1_score(labels_N, answers_N, labels=np.unique(labels_N), average="macro", zero_division=0)
    assert macro_f1(total(f1_columns(labels_N, answers_N, num_labels)))[0] == pytest.approx(expected)


def test_macro_f1_of_a_resample_without_a_label_leaves_that_label_out() -> None:
    columns_NK = f1_columns(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
    without_the_last = total(columns_NK[:2])
    assert macro_f1(without_the_last)[0] == pytest.approx(2 / 3)


def test_losses_and_squared_distances_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    probabilities_NC = rng.dirichlet(np.ones(3), 50)
    labels_N = rng.integers(0, 3, 50)
    losses_N = -np.log(probabilities_NC[np.arange(50), labels_N])
    counts_R = np.array([50.0])
    loss = mean(total(fixed_point(losses_N))[:, 0], counts_R)[0]
    assert loss == pytest.approx(log_loss(labels_N, probabilities_NC, labels=[0, 1, 2]), abs=1e-6)
    brier = mean(total(fixed_point(squared_distances(probabilities_NC, labels_N)))[:, 0], counts_R)[0]
    expected = brier_score_loss(labels_N, probabilities_NC, labels=[0, 1, 2], scale_by_half=False)
    assert brier == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    confidences_N = np.repeat([0.7, 0.9], 50)
    correct_N = np.arange(100) % 2 == 0
    # Gaps 0.2 and 0.4: mean 0.3, variance 0.01. Both bins are half right, so the noise has the variance 0.25 / 49.
    noise = 0.25 / 49
    spread = 0.01 - noise / 2
    folded = foldnorm(0.3 / np.sqrt([spread, spread + noise]), scale=np.sqrt([spread, spread + noise])).mean()
    assert calibration_error(confidences_N, correct_N, 2) == pytest.approx(0.3 - (folded[1] - folded[0]), abs=1e-6)


@given(st.floats(-3, 3), st.floats(1e-3, 5))
def test_folded_mean_is_scipys(mean: float, deviation: float) -> None:
    expected = foldnorm(abs(mean) / deviation, scale=deviation).mean()
    assert folded_mean(np.array([mean]), np.array([deviation**2]))[0] == pytest.approx(expected, rel=1e-6)
    assert folded_mean(np.array([mean]), np.zeros(1))[0] == abs(mean)


def simulated_errors(skill: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Debiased and plain errors of 400 suites of 600 items, of a model that is right with confidence times skill."""
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(400):
        confidences_N = rng.uniform(0.5, 1, 600)
        correct_N = rng.random(600) < confidences_N * skill
        errors.append((calibration_error(confidences_N, correct_N, 15),
                       plain_calibration_error(confidences_N, correct_N, 15)))  # fmt: skip
    debiased, plain = np.array(errors).T
    return debiased, plain


def test_the_error_of_a_perfectly_calibrated_model_is_near_0_and_the_plain_one_is_not() -> None:
    debiased, plain = simulated_errors(skill=1.0, seed=1)
    assert plain.mean() > 0.045
    assert abs(debiased.mean()) < plain.mean() / 2.5
    assert abs(debiased.mean()) < debiased.std()
    assert np.quantile(debiased, 0.25) < 0.01


@pytest.mark.parametrize("skill", [0.95, 0.8])
def test_the_error_of_a_badly_calibrated_model_keeps_its_size(skill: float) -> None:
    debiased, _ = simulated_errors(skill=skill, seed=2)
    assert debiased.mean() == pytest.approx(0.75 * (1 - skill), abs=0.004)


def test_a_resample_has_the_noise_of_the_items_and_its_own_taken_off() -> None:
    rng = np.random.default_rng(3)
    confidences_N = rng.uniform(0.5, 1, 2000)
    columns_NB = ece_columns(confidences_N, rng.random(2000) < 0.9 * confidences_N, 10)
    draws_RN = rng.multinomial(2000, np.full(2000, 1 / 2000), 500).astype(np.float64)
    observed, *resampled = ece(np.vstack([total(columns_NB), draws_RN @ columns_NB]))
    assert np.mean(resampled) == pytest.approx(observed, abs=0.2 * np.std(resampled) + 0.002)


@pytest.mark.parametrize("skill", [1.0, 0.9])
def test_intervals_of_the_error_cover_the_truth(skill: float) -> None:
    """100 simulated suites: coverage of a nominal 95 % interval is above 95 % less three of its standard errors."""
    rng = np.random.default_rng(4)
    covered = 0
    for number in range(100):
        confidences_N = rng.uniform(0.5, 1, 600)
        correct_N = rng.random(600) < confidences_N * skill
        draws = Draws(num_units=600, resamples=300, seed=number, stream="movies")
        sums_SB = draws.sums(ece_columns(confidences_N, correct_N, 15))
        estimate = draws.figure(ece(sums_SB)).estimate(confidence=0.95, n=600, least=0)
        covered += estimate.low <= (1 - skill) * confidences_N.mean() <= estimate.high
    assert covered >= 88


@given(st.integers(1, 200), st.integers(2, 30))
def test_bins_have_equal_mass_and_follow_confidence(num_items: int, num_bins: int) -> None:
    confidences_N = np.random.default_rng(num_items).random(num_items)
    bins_N = calibration_bins(confidences_N, num_bins)
    sizes = np.bincount(bins_N)
    assert len(sizes) == min(num_bins, num_items)
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(bins_N[np.argsort(confidences_N)]) >= 0).all()


@given(st.integers(1, 40))
def test_an_error_of_few_items_is_a_number(num_items: int) -> None:
    rng = np.random.default_rng(num_items)
    assert np.isfinite(calibration_error(rng.random(num_items), rng.random(num_items) < 0.5, 15))
