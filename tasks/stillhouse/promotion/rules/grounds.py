"""Rules about the grounds of a judgement: is the evidence sound, and is there enough of it?"""

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from stillhouse.contract import CheckName, Metric, SuiteSummary
from stillhouse.promotion.rules.base import BaseRule, Evidence, Finding, SuiteRule, Suites, amount, is_finite
from stillhouse.promotion.rules.settling import noninferiority_power


class Integrity(BaseRule):
    """Each named check was made and passed. One that was not made fails, one with a warning is inconclusive."""

    kind: Literal["integrity"]
    checks: tuple[CheckName, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _checks_are_distinct(self) -> Self:
        if len(set(self.checks)) != len(self.checks):
            raise ValueError("checks must be distinct")
        return self

    def findings(self, evidence: Evidence) -> Iterator[tuple[str, Finding]]:
        """Yield a finding for each check."""
        for name in self.checks:
            yield f"the {name} check passes", self._find(name, evidence)

    def _find(self, name: CheckName, evidence: Evidence) -> Finding:
        made = [check for check in evidence.checks if check.name == name]
        if not made:
            return Finding("fail", f"the evidence has no {name} check")
        found = {check.outcome for check in made}
        detail = "; ".join(check.detail for check in made)
        return Finding("fail" if "fail" in found else "inconclusive" if "warn" in found else "pass", detail)


class MinimumItems(SuiteRule):
    """There are enough items to judge at all; too few are inconclusive, whatever the figures say.

    Items that share a source count as one, as they do in every interval.
    """

    kind: Literal["minimum-items"]
    suites: Suites = "every"
    items: int = Field(ge=1)

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"{suite} has at least {self.items:,} items"

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        found = f"{suite.num_items:,} items"
        if suite.num_groups < suite.num_items:
            found += f" from {suite.num_groups:,} sources, which count"
        if min(suite.num_items, suite.num_groups) >= self.items:
            return Finding("pass", found, bound=self.items)
        return Finding("inconclusive", f"{found}: too few to judge; add labelled items", bound=self.items)


class MinimumPower(SuiteRule):
    """There are enough items to see the margin: an equally good model would clear it with at least this chance.

    It looks at the standard error of the paired difference, and not at the difference, so it may be asked before the
    verdict is known. Too little power is inconclusive, whatever the figures say.
    """

    kind: Literal["minimum-power"]
    against: Literal["champion", "start", "teacher"] = "champion"
    margin: float = Field(gt=0)
    """That a rule about the same baseline allows."""
    power: float = Field(default=0.8, gt=0, lt=1)

    @property
    def against_champion(self) -> bool:
        """Whether the baseline is the champion."""
        return self.against == "champion"

    @property
    def against_teacher(self) -> bool:
        """Whether the baseline is the teacher."""
        return self.against == "teacher"

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        margin = amount(self.margin, metric)
        return (
            f"on {suite} a model as good as the {self.against} clears a margin of {margin} {self.power:.0%} of the time"
        )

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        gain = evidence.gain(suite, self.against)
        if gain is None or not is_finite(gain):
            reason = "the evidence lacks this figure" if gain is None else "the figure is not a number"
            return Finding("fail", reason, bound=self.power)
        found = noninferiority_power(gain, self.margin, confidence=evidence.summary.confidence)
        reason = f"it would {found:.0%} of the time, with {gain.n:,} items"
        if found >= self.power:
            return Finding("pass", reason, bound=self.power, power=found)
        return Finding("inconclusive", f"{reason}: too few to see the margin", bound=self.power, power=found)
