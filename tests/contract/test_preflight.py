"""A prediction beside what came of it."""

from typing import Any

import pytest

from stillhouse.contract import (
    Comparison,
    Estimate,
    EvaluationSummary,
    ModelScores,
    Preflight,
    Probe,
    SuiteSummary,
    compare,
)

DIGEST = "a" * 64


def about(value: float, half: float = 0.01) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, standard_error=half / 2, n=100)


def prediction(gain: float, outlook: str, metric: Any = "accuracy") -> Preflight:
    probe = Probe(
        teacher="teacher",
        teacher_layers=4,
        teacher_parameters=9,
        student_layers=2,
        student_parameters=4,
        scores={},
        gain=about(gain),
        gains=(gain, gain, gain),
        probability=0.9,
        headroom=about(0.1),
        skill=about(0.3),
        outlook=outlook,  # type: ignore[arg-type]
    )
    return Preflight(
        recipe="tiny",
        subject=DIGEST,
        metric=metric,
        confidence=0.95,
        rows=100,
        train_rows=1000,
        items=100,
        repeats=3,
        probes=(probe,),
        conclusion="",
    )


def run(difference: float | None, metric: Any = "accuracy") -> EvaluationSummary:
    suite = SuiteSummary(
        name="films",
        kind="in-domain",
        metric=metric,
        num_items=100,
        num_groups=100,
        items_sha256=DIGEST,
        models={"kd": ModelScores(metrics={metric: about(0.8)}, truncated=0)},
    )
    found = () if difference is None else (difference,)
    comparisons = tuple(
        Comparison(
            suite="films", metric=metric, model="kd", baseline="sft", difference=about(d), p_value=0.5, p_adjusted=0.5
        )
        for d in found
    )
    return EvaluationSummary(
        confidence=0.95,
        resamples=100,
        candidate="kd",
        models=("teacher", "kd"),
        suites=(suite,),
        comparisons=comparisons,
        retention={},
        mean_retention=None,
        drops={},
        excess_drops={},
    )


@pytest.mark.parametrize(
    ("gain", "outlook", "difference", "result"),
    [
        (0.05, "likely", 0.05, "confirmed"),
        (0.05, "likely", -0.05, "contradicted"),
        (-0.05, "unlikely", -0.05, "confirmed"),
        (-0.05, "unlikely", 0.05, "contradicted"),
        (0.05, "likely", 0.005, "open"),
        (0.005, "open", 0.05, "open"),
        (0.05, "likely", None, "open"),
    ],
)
def test_a_prediction_is_right_or_wrong_only_where_both_intervals_say_something(
    gain: float, outlook: str, difference: float | None, result: str
) -> None:
    outcome = compare(prediction(gain, outlook), run(difference))
    assert outcome.result == result
    assert outcome.statement.startswith(f"{result}: ")
    assert (outcome.observed is None) is (difference is None)


def test_less_loss_in_the_run_confirms_a_gain() -> None:
    outcome = compare(prediction(0.05, "likely", "nll"), run(-0.05, "nll"))
    assert outcome.result == "confirmed"
    assert outcome.observed is not None
    assert outcome.observed.value == pytest.approx(0.05)


def test_a_run_in_another_metric_settles_nothing() -> None:
    assert compare(prediction(0.05, "likely", "nll"), run(-0.05, "bits_per_byte")).result == "open"
