"""Rules that compare the candidate with another model on the same items, in the suite's own metric."""

from typing import Literal

from pydantic import Field

from stillhouse.contract import Estimate, Metric, SuiteSummary
from stillhouse.promotion.rules.base import Evidence, Finding, SuiteRule, amount, signed_interval, unit_of
from stillhouse.promotion.rules.settling import not_worse, settle
from stillhouse.recipe import Control


class TeacherGap(SuiteRule):
    """The student is not worse than the teacher by more than a ceiling; of language models in nats a token."""

    kind: Literal["teacher-gap"]
    ceiling: float = Field(ge=0)

    @property
    def against_teacher(self) -> bool:
        """True."""
        return True

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"at most {amount(self.ceiling, metric)} behind the teacher on {suite}"

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        gain = evidence.gain(suite, "teacher")
        return not_worse(gain, self.ceiling, confidence=evidence.summary.confidence)


class BeatsStart(SuiteRule):
    """The student is better than it was before distillation, by the lower end of the paired difference."""

    kind: Literal["beats-start"]
    margin: float = Field(default=0.0, ge=0)
    """The gain must exceed this."""

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        more = f"by more than {amount(self.margin, metric)} " if self.margin else ""
        return f"beats the student before distillation {more}on {suite}"

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        return settle(evidence.gain(suite, "start"), "more than", self.margin)


class BeatsControl(SuiteRule):
    """The student is better than a control arm, a student of the same start that learned something else."""

    kind: Literal["beats-control"]
    against: Control = "sft"
    """``sft`` learned the same without the teacher, ``unfiltered`` as much of what the teacher wrote, unchosen."""
    margin: float = 0.0
    """The gain must exceed this; below 0, the student may be worse by less than that."""

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        if self.margin < 0:
            return f"less than {amount(-self.margin, metric)} behind the {self.against} arm on {suite}"
        more = f"by more than {amount(self.margin, metric)} " if self.margin else ""
        return f"beats the {self.against} arm {more}on {suite}"

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        if self.against not in evidence.summary.models:
            reason = (
                f"the evidence has no {self.against} arm: ask for it in distillation.control_arm or in "
                "synthesis.controls, or drop the rule"
            )
            return Finding("fail", reason, bound=self.margin)
        return settle(evidence.gain(suite, self.against), "more than", self.margin)


class NotWorseThanChampion(SuiteRule):
    """The student is not worse than the model in service by more than a margin, measured today on the same items.

    Where that holds, a note says whether the student is even better. The two claims are tested in this order by one
    interval, so neither needs a correction (closed testing: Morikawa & Yoshida 1995; EMA CPMP/EWP/482/99).
    """

    kind: Literal["not-worse-than-champion"]
    margin: float = Field(ge=0)

    @property
    def against_champion(self) -> bool:
        """True."""
        return True

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"not worse than the champion on {suite} by more than {amount(self.margin, metric)}"

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        gain = evidence.gain(suite, "champion")
        finding = not_worse(gain, self.margin, confidence=evidence.summary.confidence)
        if gain is None or finding.outcome != "pass":
            return finding
        return finding._replace(note=_superiority(evidence.summary.candidate, suite, gain))


def _superiority(candidate: str, suite: SuiteSummary, gain: Estimate) -> str:
    claim = "is better" if gain.low > 0 else "is not worse, and not shown to be better,"
    found = f"a gain of {signed_interval(gain)} {unit_of(suite.metric)}"
    return f"{candidate} {claim} than the champion on {suite.name}: {found}"


class BetterThanChampion(SuiteRule):
    """The student is better than the model in service, by the lower end of the paired difference."""

    kind: Literal["better-than-champion"]
    margin: float = Field(default=0.0, ge=0)
    """The gain must exceed this."""

    @property
    def against_champion(self) -> bool:
        """True."""
        return True

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        more = f" by more than {amount(self.margin, metric)}" if self.margin else ""
        return f"better than the champion on {suite}{more}"

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        return settle(evidence.gain(suite, "champion"), "more than", self.margin)


class Flips(SuiteRule):
    """Few items that the baseline has right are wrong now, whatever the totals say: users notice those.

    ``every`` means each suite where right and wrong exist.
    """

    kind: Literal["flips"]
    against: Literal["teacher", "champion"]
    at_most: float = Field(ge=0, le=1)
    """Share of all items."""

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
        return f"wrong where the {self.against} is right on at most {self.at_most:g} of {suite}"

    def defined_on(self, suite: SuiteSummary, evidence: Evidence) -> bool:
        """Whether flips were counted there against any model."""
        return any(c.flips_lost is not None for c in evidence.summary.comparisons if c.suite == suite.name)

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        comparison = evidence.comparison(suite, self.against)
        return settle(comparison.flips_lost if comparison else None, "at most", self.at_most)
