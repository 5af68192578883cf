"""Texts that almost occur in two sets: an edited copy of a test text in the training data flatters the student as much
as the copy itself, and no comparison of whole texts finds it."""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from datasketch import MinHash, MinHashLSH

from stillhouse.data.tables import row_keys, text_key
from stillhouse.recipe import ContaminationConfig

MAX_MISSED = 1e-3
"""Largest chance that a pair whose similarity is exactly the threshold is not even compared."""
SEED = 1
"""Of the permutations. Candidates are compared exactly, so it decides no more than which rare pair is missed."""
WORD = re.compile(r"\w+")


def near_duplicates(
    frame: pd.DataFrame, others: Mapping[str, pd.DataFrame], config: ContaminationConfig
) -> pd.DataFrame:
    """Find the rows of ``frame`` whose text almost occurs in other sets.

    Two texts are near-duplicates if the Jaccard similarity of their sets of word n-grams reaches the threshold; case,
    punctuation and white space don't count, and a prompt is part of its answer. Candidates come from MinHash signatures
    in bands (Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, chapter 3) and are then compared
    exactly: what is found is right, and of the pairs at the threshold no more than `MAX_MISSED` is missed. A row whose
    key, see `row_keys`, is in one of the others is left out: it is a leak, which no removal may hide.

    A language that writes no spaces has few, long words: there, little more than equal sentences is found.

    Args:
        frame: N rows of the columns that `row_keys` reads.
        others: Sets to compare it with, likewise.
        config: Threshold, n-grams and permutations.

    Returns:
        One bool column (N) for each of ``others``, with the index of ``frame``. A row's value depends on its text and
        on the set of the other texts alone, not on any order.
    """
    found_NM = np.zeros((len(frame), len(others)), dtype=bool)
    index = MinHashLSH(num_perm=config.permutations, params=bands(config.threshold, config.permutations))
    texts = [_Texts(other, config) for other in others.values()]
    for column, other in enumerate(texts):
        for row, signature in other.signatures():
            index.insert((column, row), signature)
    leaks = {key for other in texts for key in other.keys}
    ours = _Texts(frame, config)
    for row, signature in ours.signatures():
        if ours.keys[row] in leaks:
            continue
        for column, candidate in index.query(signature):
            if not found_NM[row, column]:
                similarity = jaccard(ours.ngrams[row], texts[column].ngrams[candidate])
                found_NM[row, column] = similarity >= config.threshold
    return pd.DataFrame(found_NM, columns=list(others), index=frame.index)


def near_earlier(
    texts: Sequence[str], scopes: Sequence[str], config: ContaminationConfig | None
) -> npt.NDArray[np.bool_]:
    """Mark the texts that equal or almost equal an earlier one of the same scope, as `near_duplicates` measures it.

    A text is compared with those before it that were not marked themselves, so what is left holds no such pair.

    Args:
        texts: N texts, in the order in which they come first. One without a text is never marked.
        scopes: What each belongs to; texts of different scopes are never the same.
        config: Threshold, n-grams and permutations; None looks for equal texts only.

    Returns:
        bool (N).
    """
    marked_N = np.zeros(len(texts), dtype=bool)
    keys = [text_key(text) for text in texts]
    if config is None:
        seen: set[tuple[str, str]] = set()
        for row, pair in enumerate(zip(scopes, keys, strict=True)):
            marked_N[row] = bool(pair[1]) and pair in seen
            seen.add(pair)
        return marked_N
    # The scope is part of every n-gram: nothing of another scope becomes a candidate, however short the texts are.
    ngrams = [
        frozenset(f"{scope}\n{ngram}" for ngram in word_ngrams(key, config.ngram))
        for scope, key in zip(scopes, keys, strict=True)
    ]
    index = MinHashLSH(num_perm=config.permutations, params=bands(config.threshold, config.permutations))
    for row, signature in _signatures(ngrams, config.permutations):
        similar = (jaccard(ngrams[row], ngrams[earlier]) for earlier in index.query(signature))
        marked_N[row] = any(similarity >= config.threshold for similarity in similar)
        if not marked_N[row]:
            index.insert(row, signature)
    return marked_N


def word_ngrams(key: str, length: int) -> frozenset[str]:
    """Return the runs of ``length`` words of a text as `row_keys` gives it; of a shorter text, the whole text.

    A text without any word, such as a smiley, stands for itself; an empty one has nothing.
    """
    words = WORD.findall(key)
    if not words:
        return frozenset({key} - {""})
    return frozenset(" ".join(words[start : start + length]) for start in range(max(1, len(words) - length + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the share of what two sets have together that both have. One of them must not be empty."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Choose the number of bands, and of rows in each, with the fewest candidates that misses at most `MAX_MISSED`.

    Two signatures are compared if they agree on all rows of a band, which a pair of similarity s does with probability
    1 - (1 - s^rows)^bands. The library's own choice weighs false candidates as much as missed ones, and would miss more
    than half of the pairs at the threshold.
    """
    rows = permutations // 2
    while rows > 1 and (1 - threshold**rows) ** (permutations // rows) > MAX_MISSED:
        rows -= 1
    return permutations // rows, rows


class _Texts:
    """The texts of a set (N), in the forms in which they are compared."""

    def __init__(self, frame: pd.DataFrame, config: ContaminationConfig) -> None:
        self.keys: list[str] = list(row_keys(frame))
        self.ngrams = [word_ngrams(key, config.ngram) for key in self.keys]
        self._permutations = config.permutations

    def signatures(self) -> Iterator[tuple[int, MinHash]]:
        """Give the MinHash of every row that has a text, with the row's number."""
        return _signatures(self.ngrams, self._permutations)


def _signatures(ngrams: Sequence[frozenset[str]], permutations: int) -> Iterator[tuple[int, MinHash]]:
    rows = [row for row, found in enumerate(ngrams) if found]
    encoded = ([ngram.encode() for ngram in ngrams[row]] for row in rows)
    yield from zip(rows, MinHash.generator(encoded, num_perm=permutations, seed=SEED), strict=True)
