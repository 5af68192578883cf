"""Rules about what the candidate costs."""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from stillhouse.promotion.rules.base import BaseRule, Evidence, Finding, OneSided

Measure = Literal["parameters", "num_bytes", "latency_p50_ms", "latency_p95_ms", "throughput", "peak_memory_bytes"]

_PHRASES: dict[Measure, tuple[str, str]] = {
    "parameters": ("parameters", "{:,.0f}"),
    "num_bytes": ("bytes of weights", "{:,.0f}"),
    "latency_p50_ms": ("median latency", "{:.2f} ms"),
    "latency_p95_ms": ("latency at the 95th percentile", "{:.2f} ms"),
    "throughput": ("throughput", "{:.1f} texts/s"),
    "peak_memory_bytes": ("peak memory", "{:,.0f} bytes"),
}


class Budget(OneSided, BaseRule):
    """Size or speed, absolute or as a multiple of another model's, measured beside it on one machine.

    Sizes are exact. Speeds are single figures of one run without an interval: they settle the rule as they are, so a
    bound on them should leave room for what a machine's other load does.
    """

    reads_timings: ClassVar[bool] = True

    kind: Literal["budget"]
    measure: Measure
    relative_to: Literal["none", "teacher", "champion"] = "none"
    """Whose figure the bound multiplies."""

    @model_validator(mode="after")
    def _bounded_on_the_right_side(self) -> Self:
        side, bound = self.side
        if (side == "at least") != (self.measure == "throughput"):
            raise ValueError("throughput needs at_least, every other measure at_most")
        if bound <= 0:
            raise ValueError("the bound must be above 0")
        return self

    @property
    def against_champion(self) -> bool:
        """Whether the bound multiplies the champion's figure."""
        return self.relative_to == "champion"

    @property
    def against_teacher(self) -> bool:
        """Whether the bound multiplies the teacher's figure."""
        return self.relative_to == "teacher"

    def findings(self, evidence: Evidence) -> Iterator[tuple[str, Finding]]:
        """Yield one finding."""
        title, form = _PHRASES[self.measure]
        side, bound = self.side
        asked = form.format(bound) if self.relative_to == "none" else f"{bound:g} x the {self.relative_to}'s"
        yield f"{title}: {side} {asked}", self.lacking(evidence) or self._find(evidence, form)

    def _find(self, evidence: Evidence, form: str) -> Finding:
        side, bound = self.side
        measured: list[float] = []
        for model in (evidence.summary.candidate, self.relative_to):
            timing = evidence.timing(model)
            if timing is None and model != "none":
                return Finding("fail", f"the evidence has no timings of {model}", bound=bound)
            figure = getattr(timing, self.measure) if timing else 1.0
            if figure is None:
                return Finding("fail", f"the evidence has no {_PHRASES[self.measure][0]} of {model}", bound=bound)
            measured.append(figure)
        if not all(math.isfinite(figure) and figure > 0 for figure in measured):
            return Finding("fail", "the figure is not a number", bound=bound)
        found = measured[0] / measured[1]
        reason = form.format(measured[0])
        if self.relative_to != "none":
            reason += f", {found:.2f} x the {self.relative_to}'s {form.format(measured[1])}"
        met = found >= bound if side == "at least" else found <= bound
        return Finding("pass" if met else "fail", reason, bound=bound)
