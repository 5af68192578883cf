"""The quality filter: it learns a planted signal, and says so only where there is one."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from tiny_synthesis import answer

from stillhouse.contract import DataRejected
from stillhouse.data.synthetic.candidates import Candidate
from stillhouse.data.synthetic.quality import keep_best, read_rating, word_counts
from stillhouse.recipe.synthesis import RatingConfig

CONFIG = RatingConfig(prompt="{text}", keep=0.5)
GOOD = "because therefore example consider proof".split()
PLAIN = "the a house tree runs sits blue day night bread water stone".split()


def _passages(count: int, *, signal: bool, rated: float = 0.5) -> tuple[list[Candidate], list[int]]:
    """Return passages, of which some are rated, and how many good words each has."""
    rng = random.Random(7)
    found, quality = [], []
    for number in range(count):
        good = rng.randint(0, 4)
        words = [rng.choice(GOOD) for _ in range(3 * good)] + [rng.choice(PLAIN) for _ in range(30 - 3 * good)]
        rng.shuffle(words)
        rating = 1 + good if signal else rng.randint(1, 5)
        review = f"I rate it {rating} out of 5." if rng.random() < rated else None
        one = answer("topic", " ".join(words), sample=number, review=review)
        found.append(Candidate(answer=one, prompt=None, reference="topic"))
        quality.append(good)
    return found, quality


def test_a_planted_signal_is_learned_and_reaches_passages_that_nobody_rated() -> None:
    passages, quality = _passages(300, signal=True)
    kept_N, facts = keep_best(passages, CONFIG, word_counts)
    assert kept_N.sum() == 150
    assert facts.rank_correlation > 0.7
    assert facts.mean_kept > facts.mean + 0.5
    unrated_N = np.asarray([passage.answer.review is None for passage in passages])
    scores_N = np.asarray(quality)
    assert scores_N[kept_N & unrated_N].mean() > scores_N[~kept_N & unrated_N].mean() + 1
    assert facts.rated == int((~unrated_N).sum())


def test_without_a_signal_it_claims_none() -> None:
    _, facts = keep_best(_passages(300, signal=False)[0], CONFIG, word_counts)
    assert abs(facts.rank_correlation) < 0.25
    assert abs(facts.mean_kept - facts.mean) < 0.4


def test_equal_passages_get_equal_verdicts_and_any_embedding_will_do() -> None:
    passages, quality = _passages(100, signal=True)

    def states(texts: Sequence[str]) -> np.ndarray:
        return np.asarray([[sum(word in GOOD for word in text.split()), 1.0] for text in texts])

    first, second = (keep_best(passages, CONFIG, states) for _ in range(2))
    assert (first[0] == second[0]).all()
    assert first[1] == second[1]
    assert first[1].rank_correlation > 0.9
    assert min(np.asarray(quality)[first[0]]) >= 1


@pytest.mark.parametrize(
    ("reply", "rating"),
    [("4", 4), ("I'd say 3.5/5", 3.5), ("Rating: 5 out of 5", 5), ("0", None), ("7 of 10", None), ("good", None)],
)
def test_the_first_number_is_the_rating_if_it_lies_on_the_scale(reply: str, rating: float | None) -> None:
    assert read_rating(reply, (1, 5)) == rating


def test_unreadable_ratings_are_counted_and_too_few_are_refused() -> None:
    passages, _ = _passages(60, signal=True, rated=1.0)
    spoilt = [
        Candidate(
            answer=answer("t", p.text, sample=n, review="hm" if n < 30 else p.answer.review), prompt=None, reference=""
        )
        for n, p in enumerate(passages)
    ]
    assert keep_best(spoilt, CONFIG, word_counts)[1].unreadable == 30
    with pytest.raises(DataRejected, match=r"^5 passages with a readable rating are too few.*synthesis\.rating\.share"):
        keep_best(spoilt[:35], CONFIG, word_counts)
