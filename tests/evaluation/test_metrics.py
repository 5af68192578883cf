"""Metrics from column sums are the textbook metrics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss

from stillhouse.evaluation.metrics import (
    calibration_bins,
    ece,
    ece_columns,
    f1_columns,
    loss_column,
    macro_f1,
    mean_loss,
)


def total(columns_NK: np.ndarray) -> np.ndarray:
    return columns_NK.sum(axis=0, keepdims=True)


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


def test_calibration_error_by_hand() -> None:
    confidences_N = np.array([0.6, 0.7, 0.8, 0.9])
    correct_N = np.array([True, False, True, True])
    # Bins {0.6, 0.7} and {0.8, 0.9}: gaps |0.65 - 0.5| and |0.85 - 1|, each with half the mass.
    columns_NB = ece_columns(confidences_N, correct_N, num_bins=2)
    assert ece(total(columns_NB), 4)[0] == pytest.approx(0.15, abs=1e-6)


def test_a_model_as_sure_as_it_is_right_has_no_calibration_error() -> None:
    correct_N = np.tile([True, True, True, False], 25)
    columns_NB = ece_columns(np.full(100, 0.75), correct_N, num_bins=5)
    assert ece(total(columns_NB), 100)[0] == pytest.approx(0.0, abs=1e-6)


@given(st.integers(1, 200), st.integers(2, 30))
def test_bins_have_equal_mass_and_follow_confidence(num_items: int, num_bins: int) -> None:
    confidences_N = np.random.default_rng(num_items).random(num_items)
    bins_N = calibration_bins(confidences_N, num_bins)
    sizes = np.bincount(bins_N)
    assert len(sizes) == min(num_bins, num_items)
    assert sizes.max() - sizes.min() <= 1
    assert (np.diff(bins_N[np.argsort(confidences_N)]) >= 0).all()


def test_mean_loss_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    probabilities_NC = rng.dirichlet(np.ones(3), 50)
    labels_N = rng.integers(0, 3, 50)
    losses_N = -np.log(probabilities_NC[np.arange(50), labels_N])
    expected = log_loss(labels_N, probabilities_NC, labels=[0, 1, 2])
    assert mean_loss(total(loss_column(losses_N)), 50)[0] == pytest.approx(expected, abs=1e-6)
