"""Figures and their uncertainty."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from stillhouse.contract import Estimate

halves = st.floats(0, 1)
figures = st.builds(
    lambda value, down, up, error, n: Estimate(
        value=value, low=value - down, high=value + up, standard_error=error, n=n
    ),
    st.floats(-10, 10),
    halves,
    halves,
    halves,
    st.integers(1, 1000),
)


def share(hits: int, n: int) -> Estimate:
    interval = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Estimate(value=hits / n, low=interval.low, high=interval.high, standard_error=0.05, n=n)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0)],
)
def test_the_difference_of_two_shares_has_newcombes_interval(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe (1998), table II, method 10."""
    difference = share(*one).minus(share(*other))
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=5e-5)


@given(figures, figures)
def test_a_difference_is_at_least_as_wide_as_either_figure_and_turns_its_sign_with_them(
    one: Estimate, other: Estimate
) -> None:
    found = one.minus(other)
    assert found.low <= found.value <= found.high
    assert found.high - found.low >= max(f.high - f.low for f in (one, other)) / 2**0.5 - 1e-8
    assert found.n == min(one.n, other.n)
    turned = other.minus(one).negated()
    assert (turned.value, turned.low, turned.high) == pytest.approx((found.value, found.low, found.high), abs=2e-9)
