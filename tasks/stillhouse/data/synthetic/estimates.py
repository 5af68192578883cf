"""Shares with intervals, where what belongs together is drawn together."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.stats import norm

from stillhouse.contract import Estimate

CONFIDENCE = 0.95


def clustered_share(hits: Sequence[int], totals: Sequence[int], clusters: Sequence[Hashable]) -> Estimate:
    """Return a share of things that come in clusters: Wilson's interval at the effective number of things.

    The standard error is the linearised one of a ratio of cluster totals (Cochran 1977, section 6.3). The effective
    number is that of independent things with the same standard error (Kish 1965), at most their real number; Wilson's
    interval at it covers well near 0 and 1, where resampling does not (Dean & Pagano 2015). If every cluster has the
    same share, each counts as one thing.

    Args:
        hits: Of N units, how many of its things have the property.
        totals: How many things each has; at least one in all.
        clusters: What each unit belongs to.

    Returns:
        The share, with ``n`` the number of things.
    """
    _, index_N = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    hits_K = np.bincount(index_N, weights=np.asarray(hits, dtype=float))
    totals_K = np.bincount(index_N, weights=np.asarray(totals, dtype=float))
    num_clusters, n = np.count_nonzero(totals_K), float(totals_K.sum())
    share = float(hits_K.sum()) / n
    variance = 0.0
    if num_clusters > 1:
        deviations_K = hits_K - share * totals_K
        variance = num_clusters / (num_clusters - 1) * float((deviations_K**2).sum()) / n**2
    effective = min(n, share * (1 - share) / variance) if variance else float(num_clusters)
    low, high = _wilson(share, effective)
    # Rounded, since the last digits depend on the order in which a machine adds.
    value, low, high, error = (round(number, 6) for number in (share, low, high, float(np.sqrt(variance))))
    return Estimate(value=value, low=min(low, value), high=max(high, value), standard_error=error, n=int(n))


def _wilson(share: float, n: float) -> tuple[float, float]:
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * float(np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)))
    return max(0.0, centre - half), min(1.0, centre + half)
