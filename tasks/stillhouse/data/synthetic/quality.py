"""A quality filter learned from the teacher's ratings of some passages (phi-1, Gunasekar et al. 2023, section 2.1)."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.model_selection import KFold, cross_val_predict

from stillhouse.contract import DataRejected, RatingFacts
from stillhouse.data.synthetic.candidates import Candidate
from stillhouse.recipe.synthesis import RatingConfig

Floats = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], npt.NDArray[Any]]
"""From N texts to states (N, D)."""
FOLDS = 5
TREES = 200
BUCKETS = 512
"""Of word counts."""
_NUMBER = re.compile(r"(?<![\d.])\d+(?:\.\d+)?")


def read_rating(reply: str, scale: tuple[int, int]) -> float | None:
    """Return the first number of a reply, if it lies on the scale; None otherwise."""
    match = _NUMBER.search(reply)
    rating = float(match[0]) if match else None
    return rating if rating is not None and scale[0] <= rating <= scale[1] else None


def keep_best(
    candidates: Sequence[Candidate], config: RatingConfig, embed: Embed
) -> tuple[npt.NDArray[np.bool_], RatingFacts]:
    """Choose the share of the passages that a random forest predicts to be rated best.

    What a rated passage is predicted comes from a forest that has not seen it, so that it competes with the others on
    equal terms and its own rating does not choose it.

    Args:
        candidates: N passages; those that were reviewed carry the teacher's rating.
        config: The scale, and the share that is kept.
        embed: What the forest sees of a passage; see `word_counts`.

    Returns:
        Which stay: bool (N), and how the filter came about.

    Raises:
        DataRejected: Too few passages have a rating.
    """
    reviewed = [place for place, candidate in enumerate(candidates) if candidate.answer.review is not None]
    readings = {place: read_rating(candidates[place].answer.review or "", config.scale) for place in reviewed}
    rated = [place for place in reviewed if readings[place] is not None]
    if len(rated) < 2 * FOLDS:
        raise DataRejected(
            f"{len(rated)} passages with a readable rating are too few to learn a quality filter from, which takes "
            f"{2 * FOLDS}; raise synthesis.rating.share or mend its prompt"
        )
    ratings_R = np.asarray([readings[place] for place in rated], dtype=float)
    states_ND = np.asarray(embed([candidate.text for candidate in candidates]))
    predicted_N, unseen_R = _predict(states_ND, rated, ratings_R, config.seed)
    kept_N = _best(predicted_N, max(1, round(config.keep * len(candidates))))
    kept_ratings = ratings_R[kept_N[rated]]
    if not len(kept_ratings):
        raise DataRejected("no rated passage is among those that are kept; raise synthesis.rating.share or its keep")
    return kept_N, RatingFacts(
        rated=len(rated),
        unreadable=len(reviewed) - len(rated),
        mean=_rounded(ratings_R.mean()),
        standard_deviation=_rounded(ratings_R.std()),
        rank_correlation=_rank_correlation(unseen_R, ratings_R),
        mean_kept=_rounded(kept_ratings.mean()),
    )


def word_counts(texts: Sequence[str]) -> Floats:
    """Return what is known of N texts without a model: hashed shares of words, and the length: (N, `BUCKETS` + 1)."""
    vectorizer = HashingVectorizer(n_features=BUCKETS, alternate_sign=False, norm="l1")
    lengths_N1 = np.log1p([[len(text.split())] for text in texts])
    return np.hstack([vectorizer.transform(texts).toarray(), lengths_N1])


def _predict(states_ND: npt.NDArray[Any], rated: Sequence[int], ratings_R: Floats, seed: int) -> tuple[Floats, Floats]:
    forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features="sqrt", random_state=seed, n_jobs=1)
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    unseen_R = cross_val_predict(forest, states_ND[rated], ratings_R, cv=folds)
    predicted_N = forest.fit(states_ND[rated], ratings_R).predict(states_ND)
    predicted_N[rated] = unseen_R
    return predicted_N, unseen_R


def _best(predicted_N: Floats, count: int) -> npt.NDArray[np.bool_]:
    # Rounded, so that two machines that add in another order agree; of equal ones the first stay.
    order_N = np.argsort(-predicted_N.round(6), kind="stable")
    kept_N = np.zeros(len(predicted_N), dtype=bool)
    kept_N[order_N[:count]] = True
    return kept_N


def _rank_correlation(predicted_R: Floats, ratings_R: Floats) -> float:
    if len(np.unique(ratings_R)) == 1 or len(np.unique(predicted_R)) == 1:
        return 0.0  # nothing to rank
    return _rounded(spearmanr(predicted_R.round(6), ratings_R).statistic)


def _rounded(value: Any) -> float:
    return round(float(value), 6)
