"""How different the texts of a set are from one another."""

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from stillhouse.contract import Diversity
from stillhouse.data.contamination import WORD, near_earlier
from stillhouse.recipe import ContaminationConfig

WINDOW = 1000
"""Words, or word pairs, among which the different ones are counted: any larger set has fewer of them by its size."""
SAMPLE = 300
"""Texts that are compared with one another by BLEU."""
ORDER = 4
EPSILON = 0.1
"""Matches that an order without any counts as (Chen & Cherry 2014, method 1), as Zhu et al. did."""
Words = Sequence[str]


def measure_diversity(texts: Sequence[str], scopes: Sequence[str], config: ContaminationConfig | None) -> Diversity:
    """Measure N >= 1 texts.

    Args:
        texts: Their order decides no more than which of several alike is called the first.
        scopes: Within which near-duplicates count; see `near_earlier`.
        config: How near that is.
    """
    words = [tuple(WORD.findall(text.casefold())) for text in texts]
    ordered = sorted(words, key=lambda text: hashlib.sha256(" ".join(text).encode()).hexdigest())
    return Diversity(
        texts=len(texts),
        distinct_1=distinct([word for text in ordered for word in text]),
        distinct_2=distinct([pair for text in ordered for pair in pairwise(text)]),
        self_bleu=self_bleu(ordered[:SAMPLE]),
        near_duplicates=round(float(near_earlier(texts, scopes, config).mean()), 6),
    )


def distinct(terms: Sequence[Hashable]) -> float:
    """Return the share of different terms among all (Li et al. 2016), the mean over whole windows of `WINDOW` terms.

    Fewer terms than a window are one window; none at all give 0.
    """
    starts = range(0, max(1, len(terms) - WINDOW + 1), WINDOW)
    shares = [len(set(terms[start : start + WINDOW])) / len(terms[start : start + WINDOW]) for start in starts if terms]
    return round(float(np.mean(shares)), 6) if shares else 0.0


def self_bleu(texts: Sequence[Words]) -> float:
    """Return the mean BLEU-4 of a text with all others as its references (Zhu et al. 2018); 0 for a single text."""
    if len(texts) < 2:
        return 0.0
    grams = [[_ngrams(text, order) for order in range(1, ORDER + 1)] for text in texts]
    most = [_two_largest(row[order] for row in grams) for order in range(ORDER)]
    lengths = [len(text) for text in texts]
    scores = [_bleu(row, grams[row], most, lengths) for row in range(len(texts))]
    return round(float(np.mean(scores)), 6)


Grams = Counter[tuple[str, ...]]
"""How often each n-gram of a text occurs."""
_Largest = dict[tuple[str, ...], tuple[int, int, int]]
"""By n-gram: its largest count in one text, that text, and its largest count in any other."""


def _two_largest(texts: Iterable[Grams]) -> _Largest:
    found: _Largest = {}
    for row, counts in enumerate(texts):
        for gram, count in counts.items():
            best, owner, second = found.get(gram, (0, -1, 0))
            found[gram] = (count, row, best) if count > best else (best, owner, max(second, count))
    return found


def _bleu(row: int, grams: Sequence[Grams], most: Sequence[_Largest], lengths: Sequence[int]) -> float:
    """Return the BLEU-4 (Papineni et al. 2002) of a text against all others."""
    logs = []
    for order, counts in enumerate(grams):
        matched = 0
        for gram, count in counts.items():
            best, owner, second = most[order][gram]
            matched += min(count, second if owner == row else best)
        if order == 0 and not matched:
            return 0.0
        logs.append(math.log((matched or EPSILON) / max(1, lengths[row] - order)))
    others = (length for other, length in enumerate(lengths) if other != row)
    closest = min(others, key=lambda length: (abs(length - lengths[row]), length))
    brevity = 1.0 if lengths[row] > closest else math.exp(1 - closest / lengths[row])
    return brevity * math.exp(sum(logs) / ORDER)


def _ngrams(text: Words, order: int) -> Grams:
    return Counter(tuple(text[start : start + order]) for start in range(len(text) - order + 1))
