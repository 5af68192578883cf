"""How an interval settles a bound, and whether enough items are there to settle it at all."""

import math
from collections.abc import Mapping
from statistics import NormalDist

from stillhouse.contract import Estimate
from stillhouse.promotion.rules.base import Asks, Finding, is_finite

_WORDS: Mapping[Asks, tuple[str, str]] = {
    "at least": ("at or above", "below"),
    "more than": ("above", "not above"),
    "at most": ("at or below", "above"),
}


def settle(estimate: Estimate | None, asks: Asks, bound: float, *, tolerant: bool = False) -> Finding:
    """Hold a figure against a bound.

    An interval that meets the bound from end to end passes; one that misses it from end to end fails. In between, the
    figure itself decides between "fail", if it is on the wrong side, and "inconclusive".

    Args:
        estimate: The figure; None or not finite fails.
        asks: On which side of the bound it must be.
        bound: In the figure's unit.
        tolerant: Of margins, where being a little worse is allowed: only an interval that misses it from end to end
            fails (non-inferiority).
    """
    if estimate is None:
        return Finding("fail", "the evidence lacks this figure", bound=bound)
    if not is_finite(estimate):
        return Finding("fail", "the figure is not a number", bound=bound)
    turned, limit = (estimate.negated(), -bound) if asks == "at most" else (estimate, bound)
    met, missed = _WORDS[asks]
    low, high = f"starts at {_number(estimate.low)}", f"ends at {_number(estimate.high)}"
    near, far = (high, low) if asks == "at most" else (low, high)

    def meets(figure: float) -> bool:
        return figure > limit if asks == "more than" else figure >= limit

    if not tolerant and not meets(turned.value):
        return Finding("fail", f"{_number(estimate.value)} is {missed} {bound:g}", estimate, bound)
    if not meets(turned.high):
        return Finding("fail", f"the interval {far}, {missed} {bound:g}", estimate, bound)
    if meets(turned.low):
        return Finding("pass", f"the interval {near}, {met} {bound:g}", estimate, bound)
    return Finding("inconclusive", _straddles(estimate, bound), estimate, bound)


def not_worse(gain: Estimate | None, margin: float, *, confidence: float) -> Finding:
    """Hold a gain against a margin of non-inferiority, with the comparison's power."""
    finding = settle(gain, "at least", -margin, tolerant=True)
    if finding.value is None:
        return finding
    return finding._replace(power=noninferiority_power(finding.value, margin, confidence=confidence))


def noninferiority_power(gain: Estimate, margin: float, *, confidence: float) -> float:
    """Return the chance that the interval of an equally good model lies above ``-margin``.

    Phi(margin / standard error - z), with z the normal quantile of the interval's upper end (Julious 2004:
    the power of non-inferiority where the true difference is zero). It does not look at the difference that was found.

    Args:
        gain: Only its standard error is read, which must be finite.
        margin: Not negative, in the gain's unit.
        confidence: Level of the intervals.
    """
    if gain.standard_error == 0:
        return 1.0
    normal = NormalDist()
    # Rounded, so that the last bits of a mathematical library change no digest.
    return round(normal.cdf(margin / gain.standard_error - normal.inv_cdf((1 + confidence) / 2)), 6)


def _straddles(estimate: Estimate, bound: float) -> str:
    """Say so, and how many items would settle it if the figure stayed: a width falls with the root of n."""
    text = f"the interval [{_number(estimate.low)}, {_number(estimate.high)}] straddles {bound:g}"
    distance = abs(estimate.value - bound)
    side = estimate.value - estimate.low if estimate.value > bound else estimate.high - estimate.value
    if distance < side / 10:
        return text
    needed = math.ceil(estimate.n * (side / distance) ** 2)
    magnitude = 10 ** max(len(str(needed)) - 2, 0)
    return f"{text}; about {math.ceil(needed / magnitude) * magnitude:,} items would settle it if the figure stayed"


def _number(value: float) -> str:
    return f"{value:.3f}"
