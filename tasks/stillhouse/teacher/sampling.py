"""From a distribution over a large vocabulary to a few token ids that stand for it.

``systematic`` and ``random`` place N points on the cumulative distribution and count how many fall to each id; counts
over N are unbiased estimates of the probabilities. ``random`` draws the points independently (RS-KD, Anshumann et al.
2025). ``systematic`` (Madow 1949) spaces them evenly after one uniform offset: each count is N p rounded down or up,
so the variance is never larger. ``top-k`` keeps the largest probabilities as they are, and is biased.

The points of a position depend on the seed, the document's id and the position alone, never on batches or shards.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

Method = Literal["systematic", "random", "top-k"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Records:
    """Sparse distributions at N positions, K entries in all, position after position."""

    offsets_S: npt.NDArray[np.int64]
    """N + 1 rising numbers: the entries of position i are those from ``offsets_S[i]`` to ``offsets_S[i + 1]``."""
    ids_K: npt.NDArray[np.int64]
    """Token ids, rising within a position."""
    values_K: npt.NDArray[np.int64] | npt.NDArray[np.float16]
    """Counts above 0 that add up to the number of samples at each position, or, for ``top-k``, probabilities."""


def sample_points(
    method: Literal["systematic", "random"], *, samples: int, seed: int, document_id: str, positions_N: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Return points_NR in [0, 1), rising along the R = ``samples`` of each position.

    Args:
        method: How they lie.
        samples: Points of a position.
        seed: Of the cache.
        document_id: Whose positions these are.
        positions_N: Places of tokens in the document.
    """
    key = np.frombuffer(hashlib.sha256(f"{seed}:{document_id}".encode()).digest()[:8], dtype="<u8")[0]
    draws = 1 if method == "systematic" else samples
    with np.errstate(over="ignore"):
        streams_N1 = _mix(key + GOLDEN * (np.asarray(positions_N, dtype=np.uint64)[:, None] + np.uint64(1)))
        numbers_NR = _mix(streams_N1 + GOLDEN * np.arange(1, draws + 1, dtype=np.uint64))
    uniform_NR = (numbers_NR >> np.uint64(11)).astype(np.float64) * 2.0**-53
    if method == "random":
        return np.sort(uniform_NR, axis=1)
    return (uniform_NR + np.arange(samples)) / samples


def cumulative(probabilities_NV: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return the cumulative distributions of N positions in float64, each ending at exactly 1."""
    sums_NV = np.cumsum(probabilities_NV.cpu().numpy(), axis=1, dtype=np.float64)
    sums_NV /= sums_NV[:, -1:]
    return sums_NV


def sample(probabilities_NV: torch.Tensor, points_NR: npt.NDArray[np.float64]) -> Records:
    """Count the points that fall to each id.

    Args:
        probabilities_NV: Not negative; a row adds up to 1, as far as its precision allows.
        points_NR: See `sample_points`. As many counts are given at each position.
    """
    samples = points_NR.shape[1]
    sums_NV = cumulative(probabilities_NV)
    # Rounding may carry the last point of evenly spaced ones to 1, which belongs to no id.
    points_NR = np.minimum(points_NR, np.nextafter(1.0, 0.0))
    # The first sum above a point: an id without probability is never the first.
    rows = zip(sums_NV, points_NR, strict=True)
    chosen = [np.searchsorted(sums_V, points_R, side="right") for sums_V, points_R in rows]
    chosen_NR = np.asarray(chosen, dtype=np.int64).reshape(-1, samples)
    starts_NR = np.ones(chosen_NR.shape, dtype=np.bool_)
    starts_NR[:, 1:] = chosen_NR[:, 1:] != chosen_NR[:, :-1]
    first_K = np.flatnonzero(starts_NR)
    return Records(
        offsets_S=np.concatenate([[0], np.cumsum(starts_NR.sum(axis=1))]).astype(np.int64),
        ids_K=chosen_NR.reshape(-1)[first_K],
        values_K=np.diff(first_K, append=chosen_NR.size).astype(np.int64),
    )


def largest(probabilities_NV: torch.Tensor, k: int) -> Records:
    """Keep the ``k`` largest probabilities of each position, in float16; those that round to 0 are left out."""
    values_NK, ids_NK = torch.topk(probabilities_NV, min(k, probabilities_NV.shape[1]), dim=1)
    ids_NK, order_NK = ids_NK.sort(dim=1)
    kept_NK = values_NK.gather(1, order_NK).to(torch.float16).cpu().numpy()
    return Records(
        offsets_S=np.concatenate([[0], np.cumsum((kept_NK > 0).sum(axis=1))]).astype(np.int64),
        ids_K=ids_NK.cpu().numpy()[kept_NK > 0],
        values_K=kept_NK[kept_NK > 0],
    )


def join_records(parts: Sequence[Records]) -> Records:
    """Put records one after another; at least one part."""
    shifts = np.cumsum([0, *(part.offsets_S[-1] for part in parts)])
    offsets = [part.offsets_S[1:] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
    return Records(
        offsets_S=np.concatenate([[0], *offsets]),
        ids_K=np.concatenate([part.ids_K for part in parts]),
        values_K=np.concatenate([part.values_K for part in parts]),
    )


def _mix(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit numbers: the finaliser of SplitMix64 (Steele et al. 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
