"""One temperature a model: the one that minimises the loss on validation data."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imaginary import SUITES, make_records
from scipy.special import softmax

from stillhouse.contract import DataRejected
from stillhouse.evaluation import SuiteInfo, summarise
from stillhouse.evaluation.calibration import BOUNDS, fit_temperature, scale
from stillhouse.recipe import EvaluationConfig

CONFIG = EvaluationConfig(resamples=200, temperature_scaling=True)


def overconfident(temperature: float, *, seed: int = 0, num_items: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and labels drawn from what they are at that temperature."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(0, 3, (num_items, 3))
    true_NC = softmax(logits_NC / temperature, axis=1)
    labels_N = (rng.random((num_items, 1)) > true_NC.cumsum(axis=1)).sum(axis=1)
    return softmax(logits_NC, axis=1), labels_N


def loss(probabilities_NC: np.ndarray, labels_N: np.ndarray) -> float:
    return float(-np.log(probabilities_NC[np.arange(len(labels_N)), labels_N]).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_data_is_found(temperature: float) -> None:
    assert fit_temperature(*overconfident(temperature)) == pytest.approx(temperature, rel=0.05)


@given(st.integers(0, 1000), st.floats(0.3, 5))
def test_no_other_temperature_has_a_smaller_loss(seed: int, temperature: float) -> None:
    probabilities_NC, labels_N = overconfident(temperature, seed=seed, num_items=60)
    best = fit_temperature(probabilities_NC, labels_N)
    others = [best * factor for factor in (0.5, 0.95, 1.05, 2) if BOUNDS[0] <= best * factor <= BOUNDS[1]]
    fitted = loss(scale(probabilities_NC, best), labels_N)
    assert all(fitted <= loss(scale(probabilities_NC, other), labels_N) + 1e-12 for other in others)


def test_extremes_stop_at_the_bounds() -> None:
    probabilities_NC = np.tile([0.9, 0.1], (50, 1))
    assert fit_temperature(probabilities_NC, np.zeros(50, dtype=np.int64)) == BOUNDS[0]
    assert fit_temperature(probabilities_NC, np.ones(50, dtype=np.int64)) == BOUNDS[1]


def test_a_probability_that_is_stored_as_0_does_no_harm() -> None:
    probabilities_NC = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert 1 < fit_temperature(probabilities_NC, np.array([0, 1, 1])) <= BOUNDS[1]
    assert scale(probabilities_NC, 1.0) == pytest.approx(probabilities_NC)


def validation_records() -> pa.Table:
    suite = SuiteInfo(name="validation", kind="in-domain", items_sha256="3" * 64)
    return make_records(suites=[suite], num_items=400, seed=5)


def test_the_summary_scales_the_test_items_with_what_the_validation_items_gave() -> None:
    records = make_records()
    summary = summarise(records, config=CONFIG, suites=SUITES, validation=validation_records())
    for suite in summary.suites:
        for scores in suite.models.values():
            assert scores.temperature is not None
            assert scores.temperature != 1.0
            assert scores.metrics["ece_scaled"] != scores.metrics["ece"]
    teacher = summary.suites[0].models["teacher"].metrics
    assert teacher["ece_scaled"].value < teacher["ece"].value
    plain = summarise(records, config=EvaluationConfig(resamples=200), suites=SUITES, validation=validation_records())
    assert "ece_scaled" not in plain.suites[0].models["kd"].metrics
    assert plain.suites[0].models["kd"].temperature is None
    assert plain.suites[0].models["kd"].metrics["ece"] == summary.suites[0].models["kd"].metrics["ece"]


def test_scaling_without_validation_records_is_refused() -> None:
    with pytest.raises(DataRejected, match="temperature scaling needs records of the validation set"):
        summarise(make_records(num_items=20), config=CONFIG, suites=SUITES)
    with pytest.raises(DataRejected, match="model teacher on suite validation: no records"):
        summarise(make_records(num_items=20), config=CONFIG, suites=SUITES, validation=make_records(num_items=20))
