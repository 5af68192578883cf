"""Classification metrics as functions of sums over items, so that a resample costs one row of a matrix product.

Every metric here depends on its items only through sums of per-item columns (hits, label counts, losses …). So the
point value is the metric of the column sums, and 2,000 bootstrap values are the metric of 2,000 weighted column sums.
Columns hold whole numbers, real quantities being rounded to 2^-20: sums are exact in float64, in any order, and so
the same on every machine.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import erf

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNIT = 2.0**20
"""Fixed-point units in 1."""


def fixed_point(values_N: Floats) -> Floats:
    """Turn real quantities into whole numbers of `UNIT`, as a column, shape (N, 1); see `mean`."""
    return np.rint(values_N * UNIT)[:, None]


def mean(sums_R: Floats, counts_R: Floats) -> Floats:
    """Mean of a quantity, shape (R), from the sums of its `fixed_point` column and the numbers of items."""
    return sums_R / (UNIT * counts_R)


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


def squared_distances(probabilities_NC: Floats, labels_N: Ints) -> Floats:
    """Squared distance of the probabilities from the label's, which are 0 and 1; shape (N), 0 to 2 (Brier 1950)."""
    right_N = probabilities_NC[np.arange(len(labels_N)), labels_N]
    distances_N: Floats = (probabilities_NC**2).sum(axis=1) - 2 * right_N + 1
    return distances_N


def calibration_bins(confidences_N: Floats, num_bins: int) -> Ints:
    """Put each item into one of at most ``num_bins`` bins of equal mass by confidence, shape (N)."""
    num_bins = min(num_bins, len(confidences_N))
    bins_N = np.empty(len(confidences_N), dtype=np.int64)
    order_N = np.argsort(confidences_N, kind="stable")
    bins_N[order_N] = np.arange(len(confidences_N)) * num_bins // len(confidences_N)
    return bins_N


def ece_columns(confidences_N: Floats, correct_N: Bools, num_bins: int) -> Floats:
    """Per item, in its bin's columns: (confidence - hit in fixed point, hit, 1), shape (N, 3 * B); see `ece`."""
    bins_N = calibration_bins(confidences_N, num_bins)
    in_bin_NB = (bins_N[:, None] == np.arange(bins_N.max() + 1)).astype(np.float64)
    gaps_N1 = fixed_point(confidences_N - correct_N)
    return np.hstack([in_bin_NB * gaps_N1, in_bin_NB * correct_N[:, None], in_bin_NB])


def ece(sums_RB: Floats) -> Floats:
    """Expected calibration error over bins of equal mass, less what noise alone is expected to add.

    The plain figure is the mass-weighted mean of the bins' absolute gaps between confidence and accuracy (Naeini et al.
    2015; equal mass: Nixon et al. 2019). A gap counts whatever its sign, so noise never cancels, and a perfectly
    calibrated model seems off. With ``g_b`` the gap of bin b, ``w_b`` its share of the items, ``n_b`` their number and
    ``a_b`` its accuracy, the noise of the gap has the variance ``s_b = a_b (1 - a_b) / (n_b - 1)``. Take the true
    gaps for draws from a normal distribution: its mean is ``m = sum_b w_b g_b``, its variance that of the gaps without
    their noise, ``t = sum_b w_b (g_b - m)^2 - sum_b w_b (1 - w_b) s_b``, at least 0 (so Bröcker 2012 and Kumar et al.
    2019, section 5, debias the squared error). Then ``sum_b w_b (F(m, t + s_b) - F(m, t))`` is what the noise adds to
    the mean absolute gap, F being the mean of a folded normal distribution; it is subtracted. (The correction of Kumar
    et al. for absolute gaps takes each bin's gap at face value, and leaves a calibrated model most of its bias.)

    The bins are those of the observed items and stay where they are in resamples. A resample carries the noise of the
    observed items and its own on top; both are subtracted. Items count as independent: where they share sources the
    noise is larger, and the figure stays on the pessimistic side.

    Args:
        sums_RB: Column sums of `ece_columns`, shape (R, 3 * B), the first row being the observed one.

    Returns:
        Shape (R). Not clipped at 0, so that resamples keep their spread; the caller clips.
    """
    gaps_RB, hits_RB, counts_RB = np.split(sums_RB, 3, axis=1)
    filled_RB = np.maximum(counts_RB, 1)
    gaps_RB = gaps_RB / (UNIT * filled_RB)
    accuracies_RB = hits_RB / filled_RB
    noise_RB = accuracies_RB * (1 - accuracies_RB) / np.maximum(counts_RB - 1, 1)
    noise_RB[1:] += noise_RB[0]
    shares_RB = counts_RB / counts_RB.sum(axis=1, keepdims=True)
    mean_R = (shares_RB * gaps_RB).sum(axis=1)
    scatter_RB = (gaps_RB - mean_R[:, None]) ** 2 - (1 - shares_RB) * noise_RB
    spread_R = np.maximum((shares_RB * scatter_RB).sum(axis=1), 0)
    with_noise_RB = folded_mean(mean_R[:, None], spread_R[:, None] + noise_RB)
    errors_R: Floats = (shares_RB * (np.abs(gaps_RB) - with_noise_RB)).sum(axis=1) + folded_mean(mean_R, spread_R)
    return errors_R


def folded_mean(mean: Floats, variance: Floats) -> Floats:
    """Mean of the absolute value of a normal variable (Leone et al. 1961), for arrays of any one shape."""
    deviation = np.sqrt(variance)
    steepness = np.abs(mean) / np.where(variance > 0, deviation, 1)
    folded: Floats = np.where(
        variance > 0,
        deviation * np.sqrt(2 / np.pi) * np.exp(-(steepness**2) / 2) + np.abs(mean) * erf(steepness / np.sqrt(2)),
        np.abs(mean),
    )
    return folded
