"""Uncertainty: a paired bootstrap with BCa intervals, Wilson's interval, and tests of paired answers.

- Proportions of independent items (accuracy, agreement) get Wilson's score interval: it needs no simulation and stays
  honest where a bootstrap does not, as when all of 40 items are right.
- Everything else gets the BCa interval (Efron 1987): percentiles of the resamples, corrected for bias and for
  skewness. `scipy.stats.bootstrap` has it too, but calls its statistic on items, not on sums, and knows no groups.
- What is drawn are units: items, or groups of items that share a source (Davison & Hinkley 1997, section 3.8).
- Resampling is paired: each resample takes the same units for all models, so that what is hard for both cancels.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binomtest

from stillhouse.contract import Estimate
from stillhouse.evaluation.metrics import Bools, Floats

CHUNK_CELLS = 4_000_000
"""Resampled units held at once: bounds memory to some 100 MB, whatever the size of the suite."""

MAX_LEFT_OUT = 500
"""Most recomputations of the jackknife: beyond, several units are left out at once, which changes little."""

DECIMALS = 9
"""Estimates are rounded to this, so that the last bits of a mathematical library change no digest."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """S = 1 + R + P ways to weigh M units: as observed, R resamples with replacement, and with each part left out."""

    num_units: int
    resamples: int
    seed: int
    """Of the run."""
    stream: str
    """Separates independent draws with the same seed; suites of the same items share it, and so are paired."""

    @property
    def num_parts(self) -> int:
        """P: how many parts of the units are left out in turn."""
        return min(self.num_units, MAX_LEFT_OUT)

    def resampled(self, rows: int) -> Iterator[Floats]:
        """Yield how often each resample has each unit, in chunks of shape (<= rows, M), R rows in all."""
        rng = generator(self.seed, self.stream)
        for size in _chunks(self.resamples, rows):
            drawn = rng.integers(0, self.num_units, (size, self.num_units))
            drawn += np.arange(size)[:, None] * self.num_units
            counts = np.bincount(drawn.ravel(), minlength=size * self.num_units)
            yield counts.reshape(size, self.num_units).astype(np.float64)

    def left_out(self, rows: int) -> Iterator[Floats]:
        """Yield weights that leave out one of P <= `MAX_LEFT_OUT` parts each, in chunks of shape (<= rows, M)."""
        parts_M = np.arange(self.num_units) % self.num_parts
        first = 0
        for size in _chunks(self.num_parts, rows):
            yield (parts_M != np.arange(first, first + size)[:, None]).astype(np.float64)
            first += size

    def sums(self, units_MK: Floats) -> Floats:
        """Sum columns of whole numbers under all weights, shape (S, K)."""
        total_K = units_MK.sum(axis=0)
        resampled = [weights_RM @ units_MK for weights_RM in self.resampled(chunk_rows(self.num_units))]
        per_part = -(-self.num_units // self.num_parts)
        padded_MK = np.pad(units_MK, ((0, per_part * self.num_parts - self.num_units), (0, 0)))
        parts_PK = padded_MK.reshape(per_part, self.num_parts, -1).sum(axis=0)
        return np.concatenate([total_K[None], *resampled, total_K - parts_PK])

    def figure(self, values_S: Floats) -> "Figure":
        """Split values that were computed under all weights."""
        last = 1 + self.resamples
        return Figure(value=float(values_S[0]), values_R=values_S[1:last], left_out={self.stream: values_S[last:]})


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure on the observed units, on every resample, and without each part of the units."""

    value: float
    values_R: Floats
    """Those that are undefined are NaN or infinite."""
    left_out: Mapping[str, Floats]
    """By stream of units, shape (P)."""

    @staticmethod
    def combine(function: Callable[..., Floats], *figures: "Figure") -> "Figure":
        """Apply a function of numbers, such as a difference, to figures: paired where they share a stream."""
        streams = dict.fromkeys(stream for figure in figures for stream in figure.left_out)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Figure(
                value=float(function(*(np.float64(f.value) for f in figures))),
                values_R=function(*(f.values_R for f in figures)),
                left_out={s: function(*(f.left_out.get(s, np.float64(f.value)) for f in figures)) for s in streams},
            )

    def estimate(self, *, confidence: float, n: int, least: float = -np.inf) -> Estimate:
        """Return the figure with its BCa interval and its bootstrap standard error.

        Args:
            confidence: Level of the interval.
            n: Items behind the figure.
            least: Smallest value that the figure can have.
        """
        values_R = self.values_R[np.isfinite(self.values_R)]
        below = np.mean(values_R < self.value) + np.mean(values_R == self.value) / 2
        # A resample that never falls below the figure would send the correction to infinity.
        edge = 1 / (len(values_R) + 1)
        bias = ndtri(np.clip(below, edge, 1 - edge))
        shifted = bias + ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
        stretched = shifted / np.maximum(1 - self._acceleration() * shifted, 1e-9)
        low, high = np.quantile(values_R, ndtr(bias + stretched))
        # Percentiles of few or strongly biased resamples may miss the figure itself.
        value, low, high = (max(bound, least) for bound in (self.value, min(low, self.value), max(high, self.value)))
        return _estimate(value, low, high, float(values_R.std(ddof=1)), n)

    def _acceleration(self) -> float:
        """Skewness of the units' influences over 6 (Efron 1987, for several samples as in `scipy.stats.bootstrap`)."""
        parts = [
            (values_P.mean() - values_P) * (len(values_P) - 1) / len(values_P) for values_P in self.left_out.values()
        ]
        influences = np.concatenate(parts)
        squares, cubes = float((influences**2).sum()), float((influences**3).sum())
        return cubes / (6.0 * float(np.power(squares, 1.5))) if 0 < squares < np.inf else 0.0


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


def swap_p_value(
    units_MK: Floats,
    baseline_MK: Floats,
    metric: Callable[[Floats], Floats],
    *,
    permutations: int,
    seed: int,
    stream: str,
) -> float:
    """Return the two-sided permutation test that two models are equally good, swapping their answers unit by unit.

    Of a mean this is the sign-flip test of the units' differences (Fisher 1935). The observed
    assignment counts as one of the permutations, so that the test keeps its level whatever their number.

    Args:
        units_MK: One model's columns, summed within each of M units.
        baseline_MK: The other's.
        metric: Column sums (R, K) to values (R).
        permutations: R.
        seed: Of the run.
        stream: Separates independent draws with the same seed.
    """
    rng = generator(seed, f"{stream}/swap")
    change_MK = baseline_MK - units_MK
    moved = [rng.integers(0, 2, (size, len(units_MK))).astype(np.float64) @ change_MK
             for size in _chunks(permutations, chunk_rows(len(units_MK)))]  # fmt: skip
    moved_RK = np.concatenate([np.zeros((1, units_MK.shape[1])), *moved])
    differences_R = metric(units_MK.sum(axis=0) + moved_RK) - metric(baseline_MK.sum(axis=0) - moved_RK)
    # Equal differences may come out unequal in their last bits.
    extreme = np.abs(differences_R) >= abs(differences_R[0]) - 1e-12
    return round(float(extreme.mean()), 12)


def bootstrap_p_value(difference: Figure) -> float:
    """Return the level at which a difference's percentile interval reaches 0 (Efron & Tibshirani 1993, 15.4)."""
    values_R = difference.values_R[np.isfinite(difference.values_R)]
    one_sided = (1 + min((values_R <= 0).sum(), (values_R >= 0).sum())) / (len(values_R) + 1)
    return round(float(min(1.0, 2 * one_sided)), 12)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct the p-values of a family of tests so that the chance of any false alarm is kept (Holm 1979).

    Own code, since `statsmodels.stats.multitest.multipletests` collects garbage in each call, which takes longer than
    all other figures of a suite.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [round(float(p), 12) for p in adjusted]


def generator(seed: int, stream: str) -> np.random.Generator:
    """Return random numbers that depend on nothing but the seed and the stream's name."""
    words = np.frombuffer(hashlib.sha256(stream.encode()).digest(), dtype=np.uint32)
    return np.random.default_rng([seed, *words.tolist()])


def chunk_rows(width: int) -> int:
    """Return how many rows of that width are held at once."""
    return max(1, CHUNK_CELLS // width)


def _chunks(total: int, rows: int) -> Iterator[int]:
    for first in range(0, total, rows):
        yield min(rows, total - first)


def _estimate(value: float, low: float, high: float, standard_error: float, n: int) -> Estimate:
    rounded = [round(float(figure), DECIMALS) + 0.0 for figure in (value, low, high, standard_error)]
    return Estimate(value=rounded[0], low=rounded[1], high=rounded[2], standard_error=rounded[3], n=n)
