"""Rules about the candidate's own figures: bounds, what it keeps of the teacher's, what it loses away from home."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stillhouse.contract import METRICS, Metric, SuiteSummary
from stillhouse.promotion.rules.base import AWAY, Evidence, Finding, OneSided, SuiteRule, amount, unit_of
from stillhouse.promotion.rules.settling import settle

_MAY_EXCEED_1: frozenset[Metric] = frozenset({"brier", "nll", "kl", "perplexity", "bits_per_byte"})


class Bound(OneSided, SuiteRule):
    """An absolute floor or ceiling of any metric, by the end of its interval that is nearer to it.

    A figure on the wrong side fails, even if its interval reaches over. ``every`` means each suite where some model has
    the metric: if the candidate lacks it there, that fails.
    """

    kind: Literal["bound"]
    metric: Metric

    @model_validator(mode="after")
    def _bounded_on_the_right_side(self) -> Self:
        side, bound = self.side
        better = METRICS[self.metric].better
        if (side == "at least") != (better == "higher"):
            raise ValueError(f"{self.metric} is better when {better}: bound it from the other side")
        if bound < 0 or (self.metric not in _MAY_EXCEED_1 and bound > 1):
            raise ValueError(f"{self.metric} can't be {bound:g}")
        return self

    @property
    def against_teacher(self) -> bool:
        """Whether the metric is likeness to the teacher."""
        return self.metric in ("agreement", "kl", "overlap")

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        side, bound = self.side
        unit = " nats" if self.metric in ("nll", "kl") else ""
        return f"{METRICS[self.metric].title} on {suite} is {side} {bound:g}{unit}"

    def defined_on(self, suite: SuiteSummary, evidence: Evidence) -> bool:
        """Whether some model has the metric there."""
        return any(self.metric in scores.metrics for scores in suite.models.values())

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        scores = suite.models.get(evidence.summary.candidate)
        estimate = scores.metrics.get(self.metric) if scores else None
        return settle(estimate, *self.side)


class Retention(SuiteRule):
    """The share of the teacher's figure that the student keeps, by the lower end of its interval.

    Only where more is better: a share of a loss means nothing, see ``teacher-gap`` for those.
    """

    kind: Literal["retention"]
    floor: float = Field(gt=0, le=2)
    across: Literal["each", "mean"] = "each"
    """``each`` suite must keep so much, so that the worst one decides; or the ``mean`` over every suite, alike."""

    @model_validator(mode="after")
    def _the_mean_is_over_every_suite(self) -> Self:
        if self.across == "mean" and "suites" in self.model_fields_set:
            raise ValueError("the mean is over every suite: leave 'suites' out")
        return self

    @property
    def against_teacher(self) -> bool:
        """True."""
        return True

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        what = unit_of(metric) or "figures"
        return f"keeps at least {self.floor:g} of the teacher's {what} on {suite}"

    def defined_on(self, suite: SuiteSummary, evidence: Evidence) -> bool:
        """Whether there is a share to keep."""
        return suite.better == "higher" and suite.kind in {"in-domain", *AWAY}

    def findings(self, evidence: Evidence) -> Iterator[tuple[str, Finding]]:
        """Yield a finding for each suite, or one for their mean."""
        if self.across == "each":
            yield from super().findings(evidence)
        else:
            yield self.requirement("average over all suites", None), self.lacking(evidence) or self._mean(evidence)

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        return settle(evidence.summary.retention.get(suite.name), "at least", self.floor)

    def _mean(self, evidence: Evidence) -> Finding:
        summary = evidence.summary
        lacking = [s.name for s in summary.suites if self.defined_on(s, evidence) and s.name not in summary.retention]
        if lacking:
            return Finding("fail", f"the evidence lacks the retention on {', '.join(lacking)}", bound=self.floor)
        finding = settle(summary.mean_retention, "at least", self.floor)
        worst = min(summary.retention.items(), key=lambda kept: kept[1].value, default=None)
        if finding.value is None or worst is None:
            return finding
        return finding._replace(reason=f"{finding.reason}; worst: {worst[0]} {worst[1].value:.3f}")


class OodDrop(SuiteRule):
    """Away from its domain the student loses hardly more than the teacher loses there, by the interval."""

    kind: Literal["ood-drop"]
    suites: Annotated[str, Field(pattern=r"^(shifted|challenge|perturbed|away|only:[a-z0-9-]+)$")] = "away"
    margin: float = Field(ge=0)
    """Most that the student may lose beyond the teacher's own loss, in the suite's metric."""

    @property
    def against_teacher(self) -> bool:
        """True."""
        return True

    def requirement(self, suite: str, metric: Metric | None) -> str:
        """Say what the rule asks for on ``suite``."""
        return f"from in-domain to {suite} loses at most {amount(self.margin, metric)} more than the teacher"

    def find(self, suite: SuiteSummary, evidence: Evidence) -> Finding:
        """Judge one suite."""
        return settle(evidence.summary.excess_drops.get(suite.name), "at most", self.margin, tolerant=True)
