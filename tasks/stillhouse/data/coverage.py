"""Is the training data like the deployment data? Figures that compare it with a reference sample, before anything is
spent on training."""

import unicodedata
from collections import Counter
from functools import cache

import numpy as np
import pandas as pd
from scipy.stats import binomtest, ks_2samp, norm, rankdata
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline

from stillhouse.contract import DataRejected
from stillhouse.data.languages import language_of
from stillhouse.data.prepare import ranks
from stillhouse.data.report import CoverageFigure, CoverageName
from stillhouse.data.tables import row_keys
from stillhouse.recipe import CoverageConfig

NEIGHBOURS = 5
"""k of the coverage. Samples of one distribution have an expected coverage of 1 - 2^-k, here 0.97, when they are of
equal size (Naeem et al. 2020, section 3.2): close enough to 1 to be read as "all of it", and still a near neighbour."""
NUM_BUCKETS = 1 << 15
"""Of the hashed n-grams. On the shipped data, four times as many change no figure by more than 0.03."""
DIMENSIONS = 64
FOLDS = 5
MIN_TEXTS = 50
MAX_TEXTS = 10_000
"""Of a set that are compared; the texts and the seed choose them."""
MAX_CHARACTERS = 2_000
"""Of a text that are embedded."""
CONFIDENCE = 0.95


def measure_coverage(
    train: pd.DataFrame, reference: pd.DataFrame, config: CoverageConfig
) -> dict[CoverageName, CoverageFigure]:
    """Compare the training set with the reference.

    Texts become the TF-IDF of their character n-grams, of unit length, projected onto the main directions of training
    texts by a truncated SVD. The n-grams are hashed, so that those which no training text has count too: a foreign text
    is short in that space. One half of the training texts fits it and the other half is compared: a space that was
    fitted to texts tells them from any others, by an AUROC of up to 0.9 where both come from one distribution.

    - ``coverage``: share of the reference texts with a training text within the distance of their k-th neighbour among
      the reference texts, in samples of equal size (Naeem et al. 2020, equation 4, the reference being the real data).
      The balls are not those of the training texts: outliers there have large ones, which cover anything. Wilson's
      interval.
    - ``auroc``: chance that a logistic regression, trained on other folds, holds a reference text for more like the
      reference than a training text. DeLong's interval (1988).
    - ``length_distance``: Kolmogorov-Smirnov statistic of the lengths in words, within the bounds of Massart (1990).
    - ``script_distance``: total variation of the mixes of scripts, such as Latin; a text has its most frequent one.
      The interval is by McDiarmid's inequality.
    - ``language_distance``: the same of the mixes of languages, as py3langid identifies them (Lui & Baldwin 2012). On
      short texts it errs, in both sets alike: halves of English reviews of 15 words differ by 0.02.
    - ``label_distance``: the same of the mixes of labels, where both sets have labels.

    Of equal texts one counts, since copies would be each other's nearest neighbours. Nothing depends on the order of
    rows. The last four intervals hold for any distribution and are wide.

    Args:
        train: The training set; see `stillhouse.data.tables.read_table`.
        reference: The reference, likewise.
        config: The seed; the bounds are the suites' business.

    Raises:
        DataRejected: A set has too few texts to compare.
    """
    ours = _distinct(train, config.seed, "train", at_least=2 * MIN_TEXTS)
    theirs = _distinct(reference, config.seed, "reference", at_least=MIN_TEXTS)
    ours_texts, theirs_texts = _texts(ours, theirs), _texts(theirs, ours)
    half = len(ours_texts) // 2
    space = _fit_space(ours_texts[:half], config.seed)
    ours_ND, theirs_MD = space.transform(ours_texts[half:]), space.transform(theirs_texts)
    figures: dict[CoverageName, CoverageFigure] = {
        "coverage": _coverage(ours_ND, theirs_MD),
        "auroc": _auroc(ours_ND, theirs_MD),
        "length_distance": _length_distance(ours["text"], theirs["text"]),
        "script_distance": _total_variation(ours["text"].map(script), theirs["text"].map(script)),
        "language_distance": _total_variation(ours["text"].map(language_of), theirs["text"].map(language_of)),
    }
    if "label" in ours and "label" in theirs:
        figures["label_distance"] = _total_variation(ours["label"], theirs["label"])
    return figures


def script(text: str) -> str:
    """Return the script of most of a text's letters, by the first word of their Unicode names, or "NONE"."""
    counts = Counter(_script_of(letter) for letter in text if letter.isalpha())
    return max(counts, key=lambda name: (counts[name], name), default="NONE")


@cache
def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(maxsplit=1)[0].split("-")[0]


def _distinct(frame: pd.DataFrame, seed: int, name: str, *, at_least: int) -> pd.DataFrame:
    """Return one row of each text, in an order that the texts and the seed decide."""
    keys = row_keys(frame)
    distinct = frame[(keys != "") & ~keys.duplicated()]
    if len(distinct) < at_least:
        raise DataRejected(
            f"{name}: {len(distinct)} different texts are too few to measure coverage, which takes {at_least}; "
            "add texts or leave data.coverage out"
        )
    order = ranks(distinct, f"coverage-{seed}").sort_values(kind="stable").index
    return distinct.loc[order[:MAX_TEXTS]]


def _texts(frame: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Return what is embedded: the text, after its prompt if both sets have prompts."""
    texts = frame["text"]
    if "prompt" in frame and "prompt" in other:
        texts = frame["prompt"] + "\n" + texts
    return [text[:MAX_CHARACTERS] for text in texts]


def _fit_space(texts: list[str], seed: int) -> Pipeline:
    ngrams = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), n_features=NUM_BUCKETS, alternate_sign=False, norm=None
    )
    # Directions that few texts share say nothing about other texts.
    svd = TruncatedSVD(min(DIMENSIONS, len(texts) // 4), random_state=seed)
    return make_pipeline(ngrams, TfidfTransformer(sublinear_tf=True), svd).fit(texts)


def _coverage(ours_ND: np.ndarray, theirs_MD: np.ndarray) -> CoverageFigure:
    size = min(len(ours_ND), len(theirs_MD))
    ours_ND, theirs_ND = ours_ND[:size], theirs_MD[:size]
    among_theirs = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, algorithm="brute").fit(theirs_ND)
    radii_N = among_theirs.kneighbors(theirs_ND)[0][:, -1]  # the first neighbour is the text itself
    nearest_N = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(ours_ND).kneighbors(theirs_ND)[0][:, 0]
    covered = int((nearest_N <= radii_N).sum())
    interval = binomtest(covered, size).proportion_ci(CONFIDENCE, method="wilson")
    return _figure(covered / size, interval.low, interval.high, size, size)


def _auroc(ours_ND: np.ndarray, theirs_MD: np.ndarray) -> CoverageFigure:
    states_KD = np.concatenate([ours_ND, theirs_MD])
    is_theirs_K = np.arange(len(states_KD)) >= len(ours_ND)
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000)
    scores_K = cross_val_predict(
        classifier, states_KD, is_theirs_K, cv=StratifiedKFold(FOLDS), method="decision_function"
    )
    return _auroc_of_scores(scores_K[~is_theirs_K], scores_K[is_theirs_K])


def _auroc_of_scores(low_N: np.ndarray, high_M: np.ndarray) -> CoverageFigure:
    """Return the chance that a score of ``high_M`` is above one of ``low_N``, by ranks (Sun & Xu 2014)."""
    size_N, size_M = len(low_N), len(high_M)
    all_ranks = rankdata(np.concatenate([low_N, high_M]))
    above_N = 1 - (all_ranks[:size_N] - rankdata(low_N)) / size_M
    below_M = (all_ranks[size_N:] - rankdata(high_M)) / size_N
    value = float(below_M.mean())
    error = np.sqrt(above_N.var(ddof=1) / size_N + below_M.var(ddof=1) / size_M)
    width = norm.ppf((1 + CONFIDENCE) / 2) * error
    return _figure(value, value - width, value + width, size_N, size_M)


def _length_distance(ours: pd.Series, theirs: pd.Series) -> CoverageFigure:
    lengths = [texts.map(lambda text: len(text.split())) for texts in (ours, theirs)]
    value = float(ks_2samp(*lengths).statistic)
    width = sum(_deviation(len(texts)) for texts in lengths)
    return _figure(value, value - width, value + width, len(ours), len(theirs))


def _total_variation(ours: pd.Series, theirs: pd.Series) -> CoverageFigure:
    """Return half the summed differences of two mixes. An empirical mix of K kinds is off by half of √((K-1)/n) on the
    average, and by more than a deviation besides in few samples."""
    shares = [values.value_counts(normalize=True) for values in (ours, theirs)]
    mixes = pd.concat(shares, axis=1).fillna(0.0)
    value = float((mixes.iloc[:, 0] - mixes.iloc[:, 1]).abs().sum()) / 2
    sizes = (len(ours), len(theirs))
    width = sum(np.sqrt((len(mixes) - 1) / size) / 2 + _deviation(size) for size in sizes)
    return _figure(value, value - width, value + width, *sizes)


def _deviation(size: int) -> float:
    """Return what an empirical distribution deviates by in at most half of 1 - `CONFIDENCE` of the samples."""
    return float(np.sqrt(np.log(4 / (1 - CONFIDENCE)) / (2 * size)))


def _figure(value: float, low: float, high: float, num_train: int, num_reference: int) -> CoverageFigure:
    # Rounded, since the last digits depend on the order in which a machine adds.
    value, low, high = (round(float(np.clip(number, 0, 1)), 4) for number in (value, low, high))
    return CoverageFigure(value=value, low=low, high=high, num_train=num_train, num_reference=num_reference)
