"""The trace audit, on traces whose errors are planted; and its intervals, on clusters that are drawn."""

import random

import numpy as np
import pytest
from tiny_synthesis import answer

from stillhouse.data.synthetic.audit import FIRST_POSITIONS, Trace, audit
from stillhouse.data.synthetic.candidates import Candidate
from stillhouse.data.synthetic.estimates import clustered_share


def _trace(row: str, text: str, *, right: bool) -> Trace:
    return Trace(Candidate(answer=answer(row, text), prompt="q", reference="0"), right)


def _planted(
    steps: int, rng: random.Random, *, reliability: float, row: str, sample: int = 0
) -> tuple[Trace, list[bool]]:
    """Return a trace that adds up numbers, each step right with a probability, and which steps are."""
    total, lines, marks = rng.randint(1, 50), [], []
    for _ in range(steps):
        term, good = rng.randint(1, 50), rng.random() < reliability
        shown = total + term + (0 if good else rng.choice([-2, -1, 1, 2]))
        lines.append(f"Next, {total} + {term} = {shown}.")
        total = shown
        marks.append(good)
    text = " ".join(lines) + f"\nAnswer: {total}"
    return _trace(row, text, right=all(marks)), marks


def test_the_audit_finds_what_was_planted() -> None:
    rng = random.Random(4)
    made = [_planted(rng.randint(1, 12), rng, reliability=0.9, row=f"p{n}") for n in range(600)]
    found = audit([trace for trace, _ in made])
    marks = [mark for _, marks in made for mark in marks]
    firsts = [marks.index(False) for _, marks in made if not all(marks)]
    assert (found.traces, found.checked, found.steps) == (600, 600, len(marks))
    assert found.wrong_steps == marks.count(False)
    assert found.per_step == pytest.approx(np.mean(marks), abs=1e-6)
    assert found.accuracy.value == pytest.approx(1 - len(firsts) / 600, abs=1e-6)
    assert found.right_with_wrong_steps is not None
    assert found.right_with_wrong_steps.value == 0
    expected = [sum(min(first, FIRST_POSITIONS - 1) == place for first in firsts) for place in range(FIRST_POSITIONS)]
    assert list(found.first_wrong) == expected
    accuracies = [part.accuracy.value for part in found.by_length]
    assert len(accuracies) > 4
    assert accuracies[0] > 0.8 > 0.4 > accuracies[-1]  # errors compound with length
    assert all(part.step_accuracy is not None and 0.85 < part.step_accuracy.value < 0.95 for part in found.by_length)
    sizes = [part.accuracy.n for part in found.by_length]
    assert sum(sizes) == 600
    assert all(first.high < second.low for first, second in zip(found.by_length, found.by_length[1:], strict=False))


def test_right_answers_with_wrong_steps_are_counted_among_the_checked() -> None:
    traces = [
        _trace("a", "2 + 2 = 5, but no: Answer: 4", right=True),
        _trace("b", "2 + 2 = 4. Answer: 4", right=True),
        _trace("c", "I just know. Answer: 4", right=True),
        _trace("d", "2 + 2 = 4 and 4 + 1 = 6. Answer: 6", right=False),
    ]
    found = audit(traces)
    assert (found.checked, found.steps, found.wrong_steps, found.first_wrong) == (3, 4, 2, (1, 1))
    assert found.right_with_wrong_steps is not None
    assert (found.right_with_wrong_steps.value, found.right_with_wrong_steps.n) == (0.5, 2)
    assert found.accuracy.value == 0.75


def test_traces_without_arithmetic_have_no_reliability() -> None:
    found = audit([_trace("a", "words alone", right=False)])
    assert (found.steps, found.per_step, found.right_with_wrong_steps, found.first_wrong) == (0, None, None, ())
    assert len(found.by_length) == 1
    assert found.by_length[0].step_accuracy is None


def test_answers_to_one_problem_count_less_than_answers_to_many() -> None:
    hits = [1] * 60 + [0] * 40
    spread = clustered_share(hits, [1] * 100, list(range(100)))
    heaped = clustered_share(hits, [1] * 100, [place // 10 for place in range(100)])
    assert spread.value == heaped.value == 0.6
    assert heaped.high - heaped.low > 2 * (spread.high - spread.low)
    assert spread.standard_error == pytest.approx(np.sqrt(0.6 * 0.4 / 99), abs=1e-6)


@pytest.mark.parametrize(("share", "size"), [(0.5, 1), (0.5, 4), (0.9, 4), (0.97, 4)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(share: float, size: int) -> None:
    rng = np.random.default_rng(5)
    covered, clusters, runs = 0, 80, 400
    for _ in range(runs):
        own = rng.beta(4 * share, 4 * (1 - share), size=clusters) if size > 1 else np.full(clusters, share)
        found = clustered_share(rng.binomial(size, own).tolist(), [size] * clusters, list(range(clusters)))
        covered += found.low <= share <= found.high
    assert 0.91 <= covered / runs <= 0.995


def test_a_share_of_all_or_nothing_still_has_an_interval() -> None:
    found = clustered_share([1] * 40, [1] * 40, [place // 4 for place in range(40)])
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.6 < found.low < 0.8  # ten problems, not forty answers
