"""The uncertainty of a mean over items and repeated trainings."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from stillhouse.contract import Estimate

Floats = npt.NDArray[np.float64]

DECIMALS = 9
"""Figures are rounded to this, so that the last bits of a mathematical library change no digest."""


@dataclass(frozen=True, kw_only=True)
class CrossedMean:
    """A mean over N items and R repeats, each of which saw all items."""

    value: float
    standard_error: float
    degrees: float
    """Of freedom, of the t distribution."""
    n: int
    """Items."""

    def estimate(self, confidence: float) -> Estimate:
        """Return the mean with its interval."""
        half = float(t.ppf((1 + confidence) / 2, self.degrees)) * self.standard_error
        figures = (self.value, self.value - half, self.value + half, self.standard_error)
        value, low, high, error = (round(figure, DECIMALS) + 0.0 for figure in figures)
        return Estimate(value=value, low=low, high=high, standard_error=error, n=self.n)

    @property
    def above_zero(self) -> float:
        """Probability that the mean is above 0 if nothing but these figures is known of it."""
        if self.standard_error == 0:
            return 0.5 + 0.5 * float(np.sign(self.value))
        return round(float(t.cdf(self.value / self.standard_error, self.degrees)), DECIMALS)


def crossed_mean(values_RN: Floats, weights_N: Floats, groups_N: npt.NDArray[np.int64], *, least: float) -> CrossedMean:
    """Return the weighted mean of values that vary by item and by repeat, with both as sources of chance.

    Its variance is that of the groups' means plus that of the repeats' means. What is left over when both are known
    is counted in each of the two, once too often, which keeps few repeats from looking surer than they are. The
    degrees of freedom are Satterthwaite's (1946), as for readers and cases in studies of diagnoses (Hillis 2007).

    Args:
        values_RN: Of each repeat and item, summed over the item's parts, R >= 2.
        weights_N: Parts of each item: the mean is the sum of the values by the sum of the weights.
        groups_N: Items with the same number, from 0, share a source and count as one.
        least: The least that one group may count for: what it could change in a value that is right or wrong. So a
            handful of differences is not taken for none (Agresti & Min 2005 add half a win and half a loss).
    """
    num_repeats, num_items = values_RN.shape
    num_groups = int(groups_N.max()) + 1
    value = float(values_RN.sum() / (num_repeats * weights_N.sum()))
    residuals_RN = (values_RN - value * weights_N) * num_groups / weights_N.sum()
    residuals_RG = np.stack([np.bincount(groups_N, weights=row_N, minlength=num_groups) for row_N in residuals_RN])
    by_group = float(residuals_RG.mean(axis=0).var(ddof=1)) / num_groups + (least / num_groups) ** 2
    by_repeat = float(residuals_RG.mean(axis=1).var(ddof=1)) / num_repeats
    variance = by_group + by_repeat
    spread = by_group**2 / (num_groups - 1) + by_repeat**2 / (num_repeats - 1)
    return CrossedMean(
        value=value,
        standard_error=variance**0.5,
        degrees=variance**2 / spread if spread else np.inf,
        n=num_items,
    )
