import math

import pytest

from stillhouse.contract import DataRejected
from stillhouse.training.guards import LossGuard


def check_often(guard: LossGuard, terms: dict[str, float]) -> None:
    for step in range(20, 60):
        guard.check(step, terms)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_term_that_is_not_finite_is_named_at_once(value: float) -> None:
    guard = LossGuard(10.0)
    guard.check(1, {"ce": 2.0, "kd": 0.5})
    with pytest.raises(DataRejected, match=r"not finite at step 2 \(term kd\)"):
        guard.check(2, {"ce": 2.0, "kd": value})


def test_term_that_grows_beyond_its_factor_is_named() -> None:
    guard = LossGuard(3.0)
    for step in range(1, 8):
        guard.check(step, {"ce": 2.0, "kd": 0.1})
    with pytest.raises(DataRejected, match=r"explodes at step \d+ \(term ce: .* after 2 at the start\)"):
        check_often(guard, {"ce": 20.0, "kd": 0.1})


def test_single_outliers_and_small_terms_are_let_pass() -> None:
    guard = LossGuard(3.0)
    for step in range(1, 100):
        guard.check(step, {"ce": 30.0 if step % 40 == 0 else 2.0, "kd": 0.01 if step < 10 else 0.9})


def test_restored_guard_goes_on_where_it_was() -> None:
    one, other = LossGuard(3.0), LossGuard(3.0)
    for step in range(1, 20):
        one.check(step, {"ce": 1.0 + step / 10})
    other.restore(one.state())
    assert other.state() == one.state()
    with pytest.raises(DataRejected, match="explodes"):
        check_often(other, {"ce": 9.0})
