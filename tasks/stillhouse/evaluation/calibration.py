"""Temperature scaling of classifiers (Guo et al. 2017): one temperature per model, fitted to validation data only."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from stillhouse.evaluation.metrics import Floats, Ints

BOUNDS = (0.05, 20.0)
"""Where the temperature is sought: 0 would fit a model that is always right, infinity one worse than chance."""

SMALLEST = float(np.finfo(np.float32).tiny)
"""Probabilities are stored as float32: what is smaller counts as this when a logarithm is taken."""


def fit_temperature(probabilities_NC: Floats, labels_N: Ints) -> float:
    """Return the temperature within `BOUNDS` that minimises the mean negative log-likelihood of the labels.

    The loss is convex in the inverse temperature, so its derivative has one root or none.

    Args:
        probabilities_NC: Their logarithms serve as logits, from which they differ by a constant per item.
        labels_N: Of the same items.
    """
    logits_NC = _logits(probabilities_NC)
    label_logits_N = logits_NC[np.arange(len(labels_N)), labels_N]

    def slope(inverse: float) -> float:
        return float(((softmax(inverse * logits_NC, axis=1) * logits_NC).sum(axis=1) - label_logits_N).mean())

    coldest, hottest = 1 / BOUNDS[0], 1 / BOUNDS[1]
    if slope(coldest) <= 0:
        return BOUNDS[0]
    if slope(hottest) >= 0:
        return BOUNDS[1]
    # Rounded like all figures, so that the last bits of a mathematical library change no digest.
    return round(1 / float(brentq(slope, hottest, coldest, xtol=1e-12)), 6)


def scale(probabilities_NC: Floats, temperature: float) -> Floats:
    """Return the probabilities at another temperature, shape (N, C)."""
    scaled_NC: Floats = np.exp(log_softmax(_logits(probabilities_NC) / temperature, axis=1))
    return scaled_NC


def _logits(probabilities_NC: Floats) -> Floats:
    logits_NC: Floats = np.log(np.maximum(probabilities_NC, SMALLEST))
    return logits_NC
