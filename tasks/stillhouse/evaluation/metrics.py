"""Metrics as functions of sums over items, so that a resample costs one row of a matrix product.

Every metric here depends on its items only through sums of per-item columns (correct, label counts, losses …). So the
point value is the metric of the column sums, and 2,000 bootstrap values are the metric of 2,000 weighted column sums.
Columns hold whole numbers, real quantities being rounded to 2^-20: sums are exact in float64, in any order, and so
the same on every machine.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNIT = 2.0**20
"""Fixed-point units in 1."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model said about the N items of a suite, in the order of their ids."""

    labels_N: Ints
    predictions_N: Ints
    losses_N: Floats
    """Negative log-likelihood of the labels, in nats."""
    confidences_N: Floats
    """Probability of the predicted label."""
    truncated: int
    """Items of which the model saw only the beginning."""

    @property
    def correct_N(self) -> Bools:
        """Whether each item is right."""
        return np.equal(self.predictions_N, self.labels_N)


def f1_columns(labels_N: Ints, predictions_N: Ints, num_labels: int) -> Floats:
    """Per item and label: (hit, label, prediction) as 0 or 1, shape (N, 3 * C); see `macro_f1`."""
    classes_C = np.arange(num_labels)
    is_label_NC = labels_N[:, None] == classes_C
    is_prediction_NC = predictions_N[:, None] == classes_C
    return np.hstack([is_label_NC & is_prediction_NC, is_label_NC, is_prediction_NC]).astype(np.float64)


def macro_f1(sums_RC: Floats) -> Floats:
    """Unweighted mean of the F1 = 2 TP / (labels + predictions) of every label that occurs.

    Args:
        sums_RC: Column sums of `f1_columns`, shape (R, 3 * C).

    Returns:
        Shape (R).
    """
    hits_RC, labels_RC, predictions_RC = np.split(sums_RC, 3, axis=1)
    occurs_RC = labels_RC > 0
    f1_RC = 2 * hits_RC / np.where(occurs_RC, labels_RC + predictions_RC, 1)
    means_R: Floats = np.mean(f1_RC, axis=1, where=occurs_RC)
    return means_R


def calibration_bins(confidences_N: Floats, num_bins: int) -> Ints:
    """Put each item into one of at most ``num_bins`` bins of equal mass by confidence, shape (N)."""
    num_bins = min(num_bins, len(confidences_N))
    bins_N = np.empty(len(confidences_N), dtype=np.int64)
    order_N = np.argsort(confidences_N, kind="stable")
    bins_N[order_N] = np.arange(len(confidences_N)) * num_bins // len(confidences_N)
    return bins_N


def ece_columns(confidences_N: Floats, correct_N: Bools, num_bins: int) -> Floats:
    """Per item, in its bin's column: confidence minus correctness in fixed point, shape (N, B); see `ece`."""
    bins_N = calibration_bins(confidences_N, num_bins)
    columns_NB = np.zeros((len(bins_N), bins_N.max() + 1))
    columns_NB[np.arange(len(bins_N)), bins_N] = np.rint((confidences_N - correct_N) * UNIT)
    return columns_NB


def ece(sums_RB: Floats, num_items: int) -> Floats:
    """Expected calibration error: the mass-weighted mean gap between confidence and accuracy over the bins.

    Naeini et al. 2015, with bins of equal mass (Nixon et al. 2019). The bins are those of the observed items and stay
    where they are in resamples. With few items the figure is biased upwards, since a gap counts whatever its sign.

    Args:
        sums_RB: Column sums of `ece_columns`, shape (R, B).
        num_items: N.

    Returns:
        Shape (R).
    """
    gaps_R: Floats = np.abs(sums_RB).sum(axis=1)
    return gaps_R / (UNIT * num_items)


def loss_column(losses_N: Floats) -> Floats:
    """Losses in fixed point, shape (N, 1); see `mean_loss`."""
    return np.rint(losses_N * UNIT)[:, None]


def mean_loss(sums_R1: Floats, num_items: int) -> Floats:
    """Mean negative log-likelihood in nats, shape (R), from the column sum of `loss_column`, shape (R, 1)."""
    return sums_R1[:, 0] / (UNIT * num_items)
