"""What every rule of a policy is: a few fields, a requirement in words, and how the evidence is held against it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from stillhouse.contract import (
    METRICS,
    Comparison,
    Estimate,
    EvaluationSummary,
    IntegrityCheck,
    Metric,
    ModelTiming,
    SuiteSummary,
    Timings,
)
from stillhouse.recipe import Config, Name
from stillhouse.recipe.data import SuiteKind

Suites = Annotated[
    str,
    Field(pattern=r"^(in-domain|shifted|challenge|perturbed|away|out-of-scope|benchmark|every|only:[a-z0-9-]+)$"),
]
"""Which suites a rule judges, each by itself: those of a kind, ``away`` (shifted, challenge and perturbed), one by its
name (``only:NAME``), or ``every`` suite on which the rule's figure is defined. A suite that was not run fails, and so
does a figure that is missing on a suite of the choice."""

AWAY: frozenset[SuiteKind] = frozenset({"shifted-domain", "challenge", "perturbed"})

_KINDS: Mapping[str, frozenset[SuiteKind]] = {
    "in-domain": frozenset({"in-domain"}),
    "shifted": frozenset({"shifted-domain"}),
    "challenge": frozenset({"challenge"}),
    "perturbed": frozenset({"perturbed"}),
    "away": AWAY,
    "out-of-scope": frozenset({"out-of-scope"}),
    "benchmark": frozenset({"benchmark"}),
}

_UNITS: Mapping[Metric, str] = {"nll": "nats of loss", "kl": "nats of KL"}


def unit_of(metric: Metric | None) -> str:
    """Return what an amount of ``metric`` is called, such as "nats of loss"; "" if the metric is not known."""
    return _UNITS.get(metric, METRICS[metric].title) if metric else ""


def amount(value: float, metric: Metric | None) -> str:
    """Return a margin with its unit, such as "0.02 accuracy"."""
    return f"{value:g} {unit_of(metric)}".rstrip()


def signed(value: float) -> str:
    """Return a difference with its sign, to three decimals."""
    return f"{value:+.3f}".replace("-", "−")


def signed_interval(estimate: Estimate) -> str:
    """Return a difference with its sign and its interval."""
    return f"{signed(estimate.value)} [{signed(estimate.low)}, {signed(estimate.high)}]"


def is_finite(estimate: Estimate) -> bool:
    """Whether all of its figures are numbers."""
    return all(map(math.isfinite, (estimate.value, estimate.low, estimate.high, estimate.standard_error)))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that rules may look at."""

    summary: EvaluationSummary
    timings: Timings | None
    checks: Sequence[IntegrityCheck]
    has_champion: bool
    """Whether a model is in service today."""

    def comparison(self, suite: SuiteSummary, baseline: str) -> Comparison | None:
        """Return the candidate against ``baseline`` in the suite's own metric, if it was compared."""
        found = self.summary.comparison(suite.name, baseline)
        fits = found and found.model == self.summary.candidate and found.metric == suite.metric
        return found if fits else None

    def gain(self, suite: SuiteSummary, baseline: str) -> Estimate | None:
        """Return by how much the candidate is better than ``baseline``, if they were compared."""
        comparison = self.comparison(suite, baseline)
        if comparison is None:
            return None
        # What is not a number has no sign to turn; rules refuse it as it is.
        return comparison.gain if is_finite(comparison.difference) else comparison.difference

    def timing(self, model: str) -> ModelTiming | None:
        """Return what ``model`` costs, if it was timed."""
        return self.timings.models.get(model) if self.timings else None


Asks = Literal["at least", "more than", "at most"]
"""On which side of its bound a figure must be."""


class OneSided(Config):
    """A bound from below or from above, and not both."""

    at_least: float | None = None
    at_most: float | None = None

    @property
    def side(self) -> tuple[Literal["at least", "at most"], float]:
        """Which side is bounded, and where.

        Raises:
            ValueError: None is, or both are.
        """
        match self.at_least, self.at_most:
            case float(bound), None:
                return "at least", bound
            case None, float(bound):
                return "at most", bound
        raise ValueError("give at_least or at_most, and not both")


class Finding(NamedTuple):
    """What a rule found; see `stillhouse.contract.RuleOutcome`."""

    outcome: Literal["pass", "fail", "inconclusive"]
    reason: str
    value: Estimate | None = None
    bound: float | None = None
    power: float | None = None
    note: str | None = None
    """What a reviewer should know besides, on the decision."""


NO_CHAMPION = Finding("pass", "first model: there is no champion to compare with")
NO_TEACHER = Finding(
    "fail", "the teacher is a server and was not measured: compare with the start, a control or the champion instead"
)


class BaseRule(Config, ABC):
    """A rule. Subclasses add a ``kind``, their bounds, and `findings`."""

    reads_timings: ClassVar[bool] = False
    """Whether the decision rests on the timings too, and so carries their digest."""

    name: Name
    when: Literal["always", "first", "challenger"] = "always"
    """``first``: asked only where no model is in service yet; ``challenger``: only where one is."""

    def lacking(self, evidence: Evidence) -> Finding | None:
        """Return what follows if there is no model to compare with."""
        if self.against_teacher and not evidence.summary.has_teacher:
            return NO_TEACHER
        return NO_CHAMPION if self.against_champion and not evidence.has_champion else None

    @abstractmethod
    def findings(self, evidence: Evidence) -> Iterator[tuple[str, Finding]]:
        """Yield each requirement, in words and numbers, with what was found. At least one."""

    @property
    def against_champion(self) -> bool:
        """Whether the rule compares with the champion: a first model passes it, there being nothing to compare with."""
        return False

    @property
    def against_teacher(self) -> bool:
        """Whether the rule needs the teacher's figures: where the teacher is a server, nothing meets it."""
        return False

    def asked(self, *, has_champion: bool) -> bool:
        """Whether the rule is asked at all."""
        return self.when == "always" or (self.when == "challenger") == has_champion

    @model_validator(mode="after")
    def _a_first_model_has_no_champion(self) -> Self:
        if self.when == "first" and self.against_champion:
            raise ValueError("compares with the champion, and 'when: first' is where there is none")
        return self


class SuiteRule(BaseRule):
    """A rule that judges suites, each by itself. Subclasses add `requirement` and `find`."""

    suites: Suites = "in-domain"

    @abstractmethod
    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``; ``metric`` is the suite's own, None if the suite was not run."""

    @abstractmethod
    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""

    def defined_on(self, suite: SuiteSummary, evidence: Evidence) -> bool:
        """Whether ``suites: every`` means this suite too. A figure that only the candidate lacks is defined."""
        return True

    def findings(self, evidence: Evidence) -> Iterator[tuple[str, Finding]]:
        """Yield a finding for each suite."""
        chosen = list(self._chosen(evidence))
        if not chosen:
            name = self.suites.removeprefix("only:")
            lacking = "has this figure on no suite" if name == "every" else f"has no {name} suite"
            yield self.requirement(name, None), Finding("fail", f"the evidence {lacking}")
        for suite in chosen:
            yield self.requirement(suite.name, suite.metric), self.lacking(evidence) or self.find(suite, evidence)

    def _chosen(self, evidence: Evidence) -> Iterator[SuiteSummary]:
        for suite in evidence.summary.suites:
            if self.suites == "every":
                if self.defined_on(suite, evidence):
                    yield suite
            elif suite.kind in _KINDS.get(self.suites, ()) or self.suites == f"only:{suite.name}":
                yield suite
