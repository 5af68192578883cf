"""Uncertainty: a paired bootstrap, intervals, and the exact McNemar test.

- Proportions (accuracy, agreement) get Wilson's score interval: it needs no simulation and stays honest where a
  bootstrap does not, as when all of 40 items are right.
- Everything else gets the bias-corrected percentile interval (Efron 1981: BCa without acceleration). The correction
  matters for the calibration error, whose resampled values lie above the observed one; where there is no bias it is
  the percentile interval.
- Resampling is paired: each resample takes the same items for all models, so that what is hard for both cancels.
"""

import hashlib

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

from stillhouse.contract import Estimate
from stillhouse.evaluation.metrics import Bools, Floats

CHUNK_CELLS = 4_000_000
"""Resampled items held at once: bounds memory to some 100 MB, whatever the size of the suite."""

DECIMALS = 9
"""Estimates are rounded to this, so that the last bits of a mathematical library change no digest."""


def resampled_sums(columns_NK: Floats, *, resamples: int, seed: int, stream: str) -> Floats:
    """Sum the columns over resamples of the items, drawn with replacement.

    Args:
        columns_NK: What to sum, whole numbers, one row for each item.
        resamples: R.
        seed: Of the run.
        stream: Separates independent draws with the same seed: the name of the suite.

    Returns:
        Shape (R, K).
    """
    num_items = len(columns_NK)
    words = np.frombuffer(hashlib.sha256(stream.encode()).digest(), dtype=np.uint32)
    rng = np.random.default_rng([seed, *words.tolist()])
    rows = max(1, CHUNK_CELLS // num_items)
    sums_RK = np.empty((resamples, columns_NK.shape[1]))
    for first in range(0, resamples, rows):
        size = min(rows, resamples - first)
        drawn_RN = rng.integers(0, num_items, (size, num_items))
        drawn_RN += np.arange(size)[:, None] * num_items
        counts_RN = np.bincount(drawn_RN.ravel(), minlength=size * num_items).reshape(size, num_items)
        sums_RK[first : first + size] = counts_RN.astype(np.float64) @ columns_NK
    return sums_RK


def bootstrap_estimate(value: float, values_R: Floats, *, confidence: float, n: int) -> Estimate:
    """Return a figure with its bias-corrected percentile interval and its bootstrap standard error.

    Args:
        value: The figure on the observed items.
        values_R: The figure on each resample; those that are undefined are NaN and are left out.
        confidence: Level of the interval.
        n: Items behind the figure.
    """
    values_R = values_R[np.isfinite(values_R)]
    below = np.mean(values_R < value) + np.mean(values_R == value) / 2
    # A resample that never falls below the figure would send the correction to infinity.
    edge = 1 / (len(values_R) + 1)
    bias = ndtri(np.clip(below, edge, 1 - edge))
    tail = ndtri((1 - confidence) / 2)
    low, high = np.quantile(values_R, [ndtr(2 * bias + tail), ndtr(2 * bias - tail)])
    return _estimate(value, low, high, float(values_R.std(ddof=1)), n)


def proportion_estimate(hits: int, n: int, *, confidence: float) -> Estimate:
    """Return a proportion with Wilson's score interval (Wilson 1927)."""
    interval = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    share = hits / n
    return _estimate(share, interval.low, interval.high, float(np.sqrt(share * (1 - share) / n)), n)


def mcnemar_p_value(correct_N: Bools, baseline_correct_N: Bools) -> float:
    """Return the exact two-sided McNemar test that two models are equally often right; 1 if they never differ."""
    wins = int((correct_N & ~baseline_correct_N).sum())
    losses = int((~correct_N & baseline_correct_N).sum())
    if wins + losses == 0:
        return 1.0
    return round(float(binomtest(wins, wins + losses).pvalue), 12)


def _estimate(value: float, low: float, high: float, standard_error: float, n: int) -> Estimate:
    rounded = [round(float(figure), DECIMALS) + 0.0 for figure in (value, low, high, standard_error)]
    return Estimate(value=rounded[0], low=rounded[1], high=rounded[2], standard_error=rounded[3], n=n)
