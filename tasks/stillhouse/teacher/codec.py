"""Sparse records of a document as few bytes.

A document of P positions becomes four sections, each padded with zero bits to whole bytes; bits count from the lowest
of a byte:

1. Sampled records: P bitmaps of N - 1 bits, where a 1 ends a run of points that fell to the same id. They say how many
   ids k a position has, and the count of each. Top-k records: P numbers k, uint16.
2. Top-k records: the probabilities, float16.
3. The low bits of each id, ``floor(log2(V / k))`` of them.
4. The high bits of each id: as many 0s as they exceed those of the id before, then a 1 (Elias 1974, Fano 1971).

An id takes about ``2 + log2(V / k)`` bits, within half a bit of the best code for a random set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillhouse.contract import DataRejected
from stillhouse.teacher.sampling import Method, Records


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How records are written; both sides must agree on it."""

    method: Method
    samples: int
    """N, or the largest k of ``top-k``."""
    vocabulary: int
    """V: ids are below it."""

    def encode(self, records: Records) -> bytes:
        """Return the bytes of a document's records."""
        sizes_P = np.diff(records.offsets_S)
        widths_K = np.repeat(self._low_bits(sizes_P), sizes_P)
        starts_K = np.cumsum(widths_K) - widths_K
        low_bits = np.zeros(int(widths_K.sum()), dtype=np.uint8)
        for bit in range(int(widths_K.max(initial=0))):
            has_K = widths_K > bit
            low_bits[starts_K[has_K] + bit] = (records.ids_K[has_K] >> bit) & 1
        high_K = records.ids_K >> widths_K
        gaps_K = np.diff(high_K, prepend=0)
        first_P = records.offsets_S[:-1][sizes_P > 0]
        gaps_K[first_P] = high_K[first_P]
        ones_K = np.cumsum(gaps_K + 1) - 1
        high_bits = np.zeros(int(ones_K[-1]) + 1 if len(ones_K) else 0, dtype=np.uint8)
        high_bits[ones_K] = 1
        return self._heads(records, sizes_P) + _pack(low_bits) + _pack(high_bits)

    def decode(self, blobs: Sequence[npt.NDArray[np.uint8]], positions: Sequence[int]) -> Records:
        """Return the records of several documents, one after another.

        Args:
            blobs: The bytes of each document.
            positions: P of each document.

        Raises:
            DataRejected: The bytes are no encoding of so many positions.
        """
        lengths_M = np.asarray([len(blob) for blob in blobs], dtype=np.int64)
        positions_M = np.asarray(positions, dtype=np.int64)
        data = np.concatenate([np.empty(0, dtype=np.uint8), *blobs])
        bits = np.unpackbits(data, bitorder="little")
        ends_M = 8 * np.cumsum(lengths_M)
        head_M = ends_M - 8 * lengths_M
        low_M = head_M + 8 * _bytes(positions_M * (16 if self.method == "top-k" else self.samples - 1))
        _check(bool((low_M <= ends_M).all()))
        sizes_P, values_K = self._read_heads(data, bits, head_M, positions_M)
        document_P = np.repeat(np.arange(len(positions_M)), positions_M)
        document_K = np.repeat(document_P, sizes_P)
        ids_M = np.bincount(document_K, minlength=len(positions_M))
        if self.method == "top-k":
            _check(bool((low_M + 16 * ids_M <= ends_M).all()))
            values_K = _gather_bytes(data, low_M // 8, 2 * ids_M).view("<f2").astype(np.float16)
            low_M = low_M + 16 * ids_M
        widths_K = np.repeat(self._low_bits(sizes_P), sizes_P)
        width_M = np.bincount(document_K, weights=widths_K, minlength=len(positions_M)).astype(np.int64)
        high_M = low_M + 8 * _bytes(width_M)
        _check(bool((high_M <= ends_M).all()))
        ids_K = _read_low(bits, low_M, width_M, widths_K)
        offsets_S = np.concatenate([[0], np.cumsum(sizes_P)]).astype(np.int64)
        ids_K += _read_high(bits, high_M, ends_M, ids_M, offsets_S, document_P) << widths_K
        self._check_ids(ids_K, offsets_S)
        return Records(offsets_S=offsets_S, ids_K=ids_K, values_K=values_K)

    def _low_bits(self, sizes_P: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        # The exponent of frexp is floor(log2) + 1, without a logarithm's rounding.
        exponents_P: npt.NDArray[np.int64] = np.frexp(np.maximum(self.vocabulary // np.maximum(sizes_P, 1), 1))[1]
        return exponents_P.astype(np.int64) - 1

    def _heads(self, records: Records, sizes_P: npt.NDArray[np.int64]) -> bytes:
        if self.method == "top-k":
            return sizes_P.astype("<u2").tobytes() + records.values_K.astype("<f2").tobytes()
        ends_PN = np.zeros((len(sizes_P), self.samples), dtype=np.uint8)
        ends_PN.reshape(-1)[np.cumsum(records.values_K) - 1] = 1
        return _pack(ends_PN[:, :-1].reshape(-1))

    def _read_heads(
        self,
        data: npt.NDArray[np.uint8],
        bits: npt.NDArray[np.uint8],
        head_M: npt.NDArray[np.int64],
        positions_M: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return how many ids each position has, and for sampled records the counts."""
        if self.method == "top-k":
            sizes_P = _gather_bytes(data, head_M // 8, 2 * positions_M).view("<u2").astype(np.int64)
            _check(bool((sizes_P <= self.samples).all()))
            return sizes_P, np.empty(0, dtype=np.int64)
        places = _ragged(head_M, positions_M * (self.samples - 1))
        ends_PN = np.ones((int(positions_M.sum()), self.samples), dtype=np.uint8)
        ends_PN[:, :-1] = bits[places].reshape(len(ends_PN), self.samples - 1)
        counts_K = np.diff(np.flatnonzero(ends_PN), prepend=-1)
        return ends_PN.sum(axis=1, dtype=np.int64), counts_K.astype(np.int64)

    def _check_ids(self, ids_K: npt.NDArray[np.int64], offsets_S: npt.NDArray[np.int64]) -> None:
        rises_K = np.diff(ids_K, prepend=-1) > 0
        rises_K[offsets_S[:-1][np.diff(offsets_S) > 0]] = True
        _check(bool(rises_K.all()) and bool((ids_K < self.vocabulary).all()))


def _read_low(
    bits: npt.NDArray[np.uint8],
    low_M: npt.NDArray[np.int64],
    width_M: npt.NDArray[np.int64],
    widths_K: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    low_bits = bits[_ragged(low_M, width_M)].astype(np.int64)
    starts_K = np.cumsum(widths_K) - widths_K
    ids_K = np.zeros(len(widths_K), dtype=np.int64)
    for bit in range(int(widths_K.max(initial=0))):
        has_K = widths_K > bit
        ids_K[has_K] |= low_bits[starts_K[has_K] + bit] << bit
    return ids_K


def _read_high(
    bits: npt.NDArray[np.uint8],
    high_M: npt.NDArray[np.int64],
    ends_M: npt.NDArray[np.int64],
    ids_M: npt.NDArray[np.int64],
    offsets_S: npt.NDArray[np.int64],
    document_P: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    lengths_M = ends_M - high_M
    high_bits = bits[_ragged(high_M, lengths_M)]
    starts_M = np.cumsum(lengths_M) - lengths_M
    ones_K = np.flatnonzero(high_bits)
    documents_K = np.searchsorted(starts_M + lengths_M, ones_K, side="right")
    _check(bool((np.bincount(documents_K, minlength=len(ids_M)) == ids_M).all()))
    # A document ends with the byte of its last 1: more would be somebody else's bytes.
    last_M = np.where(ids_M > 0, ones_K[np.cumsum(ids_M) - 1] - starts_M if len(ones_K) else -1, -1)
    _check(bool((8 * _bytes(last_M + 1) == lengths_M).all()))
    # A position starts after the last 1 of the one before, or with its document.
    first_P = offsets_S[:-1]
    before_P = np.where(first_P > 0, ones_K[np.maximum(first_P - 1, 0)] + 1 if len(ones_K) else 0, 0)
    begin_P = np.maximum(before_P, starts_M[document_P])
    sizes_P = np.diff(offsets_S)
    rank_K = np.arange(len(ones_K)) - np.repeat(first_P, sizes_P)
    gaps_K: npt.NDArray[np.int64] = ones_K - np.repeat(begin_P, sizes_P) - rank_K
    return gaps_K


def _bytes(num_bits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    num_bytes: npt.NDArray[np.int64] = (num_bits + 7) // 8
    return num_bytes


def _pack(bits: npt.NDArray[np.uint8]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


def _ragged(starts_M: npt.NDArray[np.int64], lengths_M: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the places start, start + 1 and so on of each document, one after another."""
    before_M = np.cumsum(lengths_M) - lengths_M
    places: npt.NDArray[np.int64] = np.arange(int(lengths_M.sum())) + np.repeat(starts_M - before_M, lengths_M)
    return places


def _gather_bytes(
    data: npt.NDArray[np.uint8], starts_M: npt.NDArray[np.int64], lengths_M: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    return data[_ragged(starts_M, lengths_M)]


def _check(fine: bool) -> None:
    if not fine:
        raise DataRejected("the teacher's cache holds a record that can't be read; score the training set anew")
