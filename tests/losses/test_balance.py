import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import StageBug
from stillhouse.losses.balance import Balancer, balanced_weights, gradient_norms

positive = st.floats(1e-3, 1e3)


def test_norms_are_those_of_the_gradients_and_touch_nothing() -> None:
    a, b = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor(3.0))
    frozen = torch.nn.Parameter(torch.tensor(5.0), requires_grad=False)
    terms = {"both": (a * torch.tensor([3.0, 0.0])).sum() + 4 * b, "one": 2 * b, "none": torch.tensor(1.0)}
    norms = gradient_norms(terms, [a, b, frozen])
    assert norms == pytest.approx({"both": 5.0, "one": 2.0, "none": 0.0})
    assert a.grad is None
    assert b.grad is None
    terms["both"].backward()


@given(weights=st.tuples(positive, positive, positive), norms=st.tuples(positive, positive, positive))
def test_pulls_are_in_the_ratio_of_the_weights(
    weights: tuple[float, float, float], norms: tuple[float, float, float]
) -> None:
    before = dict(zip("abc", weights, strict=True))
    measured = dict(zip("abc", norms, strict=True))
    after = balanced_weights(before, measured, "a")
    assert after["a"] == before["a"]
    for name in "bc":
        pull = after[name] * measured[name] / (after["a"] * measured["a"])
        assert pull == pytest.approx(before[name] / before["a"])


@pytest.mark.parametrize("norms", [{"a": 0.0, "b": 2.0}, {"a": 2.0, "b": 0.0}])
def test_a_weight_stays_where_nothing_can_be_measured(norms: dict[str, float]) -> None:
    assert balanced_weights({"a": 1.0, "b": 3.0}, norms, "a") == {"a": 1.0, "b": 3.0}


def test_balancer_smooths_and_goes_on_from_a_checkpoint() -> None:
    weights = {"a": 1.0, "b": 2.0}
    balancer = Balancer(reference="a", smoothing=0.75)
    assert balancer.weights(weights) == weights
    balancer.update({"a": 1.0, "b": 4.0})
    assert balancer.weights(weights) == pytest.approx({"a": 1.0, "b": 0.5})
    resumed = Balancer(reference="a", smoothing=0.75)
    resumed.restore(balancer.state())
    for one in (balancer, resumed):
        one.update({"a": 1.0, "b": 8.0})
        assert one.weights(weights) == {"a": 1.0, "b": 2.0 / 5.0}


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_an_exploded_norm_is_never_smoothed_in(norm: float) -> None:
    balancer = Balancer(reference="a")
    with pytest.raises(StageBug, match="gradient norm of b"):
        balancer.update({"a": 1.0, "b": norm})
    assert balancer.state() == {}
