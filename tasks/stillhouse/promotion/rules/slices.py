"""The rule about parts of a suite: no slice on which the student falls behind."""

from typing import Literal

from pydantic import Field

from stillhouse.contract import Estimate, Metric, SuiteSummary
from stillhouse.promotion.rules.base import Evidence, Finding, SuiteRule, amount, is_finite, signed_interval
from stillhouse.promotion.rules.settling import settle

_ORDER = ("fail", "inconclusive", "pass")


class Slices(SuiteRule):
    """On every slice of a suite the student is at most ``margin`` behind the teacher, in the suite's own metric.

    Each slice is judged as non-inferiority is: its interval lies above the margin and passes, below and fails, or
    straddles it. What is known of a slice are both models' own intervals, not their difference item by item. So the
    difference gets the interval of two independent figures (`stillhouse.contract.Estimate.minus`): wider than a paired
    one, as what is hard for the teacher is hard for its student too. Where that is so the rule errs on the safe side:
    it passes too seldom. Since every slice must pass, none is corrected for the number of slices.

    Slices of fewer items are not judged, and the finding counts them. A suite without a slice to judge fails, and so
    does a slice that only one of the two models has.
    """

    kind: Literal["slices"]
    items: int = Field(ge=1)
    """Of the smallest slice that is judged. Of two accuracies near 0.9 on 100 items each, the difference is known to
    within 0.09."""
    margin: float = Field(ge=0)
    """Most that the student may be behind on any slice, in the suite's metric."""

    @property
    def against_teacher(self) -> bool:
        """True."""
        return True

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        behind = f"at most {amount(self.margin, metric)} behind the teacher"
        return f"{behind} on every slice of {suite} with at least {self.items:,} items"

    def defined_on(self, suite: SuiteSummary, evidence: Evidence) -> bool:
        """Whether some model has slices there."""
        return any(scores.per_slice for scores in suite.models.values())

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite by its worst slice."""
        mine, teachers = (
            suite.models[model].per_slice if model in suite.models else {}
            for model in (evidence.summary.candidate, "teacher")
        )
        if lacking := sorted(mine.keys() ^ teachers.keys()):
            return Finding("fail", f"the evidence lacks a model on {lacking[0]}: evaluate again", bound=-self.margin)
        judged = {name: figure for name, figure in mine.items() if figure.n >= self.items}
        if not judged:
            return Finding("fail", "the evidence has no slice of that many items", bound=-self.margin)
        found = {name: self._judge(figure, teachers[name], suite) for name, figure in judged.items()}
        name, worst = min(found.items(), key=lambda item: (_ORDER.index(item[1].outcome), _value(item[1]), item[0]))
        return worst._replace(reason=self._reason(name, worst, found, skipped=len(mine) - len(judged)))

    def _judge(self, mine: Estimate, teachers: Estimate, suite: SuiteSummary) -> Finding:
        if not (is_finite(mine) and is_finite(teachers)):
            return Finding("fail", "the figure is not a number", bound=-self.margin)
        difference = mine.minus(teachers) if suite.better == "higher" else teachers.minus(mine)
        return settle(difference, "at least", -self.margin, tolerant=True)

    def _reason(self, name: str, worst: Finding, found: dict[str, Finding], *, skipped: int) -> str:
        gain = f" {signed_interval(worst.value)}" if worst.value else ""
        counts = [sum(finding.outcome == outcome for finding in found.values()) for outcome in _ORDER]
        told = ", ".join(
            f"{count} {said}" for count, said in zip(counts, ("too far behind", "open", "pass"), strict=True) if count
        )
        smaller = f"; {skipped} smaller not judged" if skipped else ""
        return f"worst: {name}{gain}: {worst.reason}; of {len(found)} slices {told}{smaller}; intervals are not paired"


def _value(finding: Finding) -> float:
    return finding.value.value if finding.value else float("-inf")
