"""The trace audit: how a teacher's reasoning holds together, step by step, over all its answers before any filter."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stillhouse.contract import Estimate, LengthBin, TraceAudit
from stillhouse.data.synthetic.arithmetic import read_steps
from stillhouse.data.synthetic.candidates import Candidate
from stillhouse.data.synthetic.estimates import clustered_share

MAX_BINS = 8
TRACES_PER_BIN = 25
"""At least; fewer say nothing."""
FIRST_POSITIONS = 10
"""Positions of the first wrong step that are counted one by one; the last one counts all later ones too."""


@dataclass(frozen=True)
class Trace:
    """One answer with a verdict."""

    candidate: Candidate
    right: bool

    @cached_property
    def steps(self) -> tuple[bool, ...]:
        """Of each step of arithmetic that can be read, whether it is right."""
        return tuple(step.correct for step in read_steps(self.candidate.text))

    @property
    def wrong_steps(self) -> int:
        """How many are wrong."""
        return self.steps.count(False)

    @property
    def problem(self) -> str:
        """Id of the row that it reasons about."""
        return self.candidate.answer.prompt.row


def audit(traces: Sequence[Trace]) -> TraceAudit:
    """Return what the steps and the verdicts of N >= 1 traces say."""
    checked = [trace for trace in traces if trace.steps]
    right = [trace for trace in checked if trace.right]
    first = Counter(min(trace.steps.index(False), FIRST_POSITIONS - 1) for trace in checked if trace.wrong_steps)
    steps, wrong = sum(len(trace.steps) for trace in checked), sum(trace.wrong_steps for trace in checked)
    return TraceAudit(
        traces=len(traces),
        checked=len(checked),
        steps=steps,
        wrong_steps=wrong,
        accuracy=_share(traces, [trace.right for trace in traces]),
        right_with_wrong_steps=_share(right, [trace.wrong_steps > 0 for trace in right]) if right else None,
        first_wrong=tuple(first[position] for position in range(max(first, default=-1) + 1)),
        by_length=tuple(_bin(part) for part in _by_length(traces)),
        per_step=round(1 - wrong / steps, 6) if steps else None,
    )


def _share(traces: Sequence[Trace], hits: Sequence[bool]) -> Estimate:
    return clustered_share([int(hit) for hit in hits], [1] * len(traces), [trace.problem for trace in traces])


def _by_length(traces: Sequence[Trace]) -> list[list[Trace]]:
    """Cut the traces into bins of about equal mass; those of equal length stay together."""
    lengths_N = np.asarray([trace.candidate.words for trace in traces])
    num_bins = max(1, min(MAX_BINS, len(traces) // TRACES_PER_BIN))
    edges = np.unique(np.quantile(lengths_N, np.arange(1, num_bins) / num_bins, method="inverted_cdf"))
    places_N = np.searchsorted(edges, lengths_N)
    return [
        [trace for trace, other in zip(traces, places_N, strict=True) if other == place]
        for place in np.unique(places_N)
    ]


def _bin(traces: Sequence[Trace]) -> LengthBin:
    lengths = [trace.candidate.words for trace in traces]
    checked = [trace for trace in traces if trace.steps]
    steps = None
    if checked:
        correct, totals = [t.steps.count(True) for t in checked], [len(t.steps) for t in checked]
        steps = clustered_share(correct, totals, [trace.problem for trace in checked])
    return LengthBin(
        low=min(lengths), high=max(lengths), accuracy=_share(traces, [t.right for t in traces]), step_accuracy=steps
    )
