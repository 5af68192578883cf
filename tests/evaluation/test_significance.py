"""Intervals and tests against known values, scipy, statsmodels, and simulation."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import bootstrap, permutation_test
from statsmodels.stats.multitest import multipletests

from stillhouse.evaluation import significance
from stillhouse.evaluation.significance import (
    Draws,
    Figure,
    bootstrap_p_value,
    holm,
    mcnemar_p_value,
    proportion_estimate,
    swap_p_value,
)


def draws_of(num_units: int, *, resamples: int = 400, seed: int = 1, stream: str = "movies") -> Draws:
    return Draws(num_units=num_units, resamples=resamples, seed=seed, stream=stream)


def figure_of(value: float, values_R: np.ndarray) -> Figure:
    return Figure(value=value, values_R=values_R, left_out={"movies": np.zeros(5)})


def first_mean(sums_RK: np.ndarray) -> np.ndarray:
    return sums_RK[:, 0] / sums_RK[:, 1]


def test_resampling_is_paired_all_columns_take_the_same_items() -> None:
    column_N1 = np.random.default_rng(0).integers(0, 2, (50, 1)).astype(np.float64)
    sums_SK = draws_of(50).sums(np.hstack([column_N1, 1 - column_N1]))
    assert (sums_SK[:401].sum(axis=1) == 50).all()
    assert (sums_SK[401:].sum(axis=1) == 49).all()
    assert len(np.unique(sums_SK[1:401, 0])) > 5


def test_resampling_depends_on_seed_and_stream_but_not_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    columns_NK = np.arange(40.0).reshape(20, 2)
    whole = draws_of(20).sums(columns_NK)
    assert not np.array_equal(whole, draws_of(20, seed=2).sums(columns_NK))
    assert not np.array_equal(whole, draws_of(20, stream="tweets").sums(columns_NK))
    monkeypatch.setattr(significance, "CHUNK_CELLS", 7 * 20)
    assert np.array_equal(whole, draws_of(20).sums(columns_NK))


@pytest.mark.parametrize("num_units", [3, 499, 500, 501, 1234])
def test_sums_without_a_part_are_those_of_weights_that_leave_it_out(num_units: int) -> None:
    columns_NK = np.random.default_rng(0).integers(0, 1000, (num_units, 3)).astype(np.float64)
    draws = draws_of(num_units, resamples=100)
    (weights_PM,) = draws.left_out(10_000)
    assert (weights_PM.sum(axis=0) == draws.num_parts - 1).all()
    assert np.array_equal(draws.sums(columns_NK)[101:], weights_PM @ columns_NK)


def test_intervals_agree_with_scipys_bca_bootstrap() -> None:
    """A ratio of skewed quantities, so that both corrections matter."""
    rng = np.random.default_rng(3)
    columns_NK = rng.integers(1, 50, (120, 2)).astype(np.float64) ** 2
    draws = draws_of(120, resamples=20_000)
    ours = draws.figure(first_mean(draws.sums(columns_NK))).estimate(confidence=0.95, n=120)
    theirs = bootstrap(
        tuple(columns_NK.T),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * ours.standard_error * 4)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * ours.standard_error * 4)
    assert ours.standard_error == pytest.approx(theirs.standard_error, rel=0.03)


def test_the_correction_for_skewness_is_scipys_also_of_two_samples() -> None:
    rng = np.random.default_rng(4)
    values_N, values_M = rng.exponential(1, 60), rng.exponential(3, 90)
    figures = []
    for values, stream in ((values_N, "a"), (values_M, "b")):
        draws = draws_of(len(values), resamples=20_000, stream=stream)
        columns = np.stack([np.rint(values * 1e6), np.ones(len(values))], axis=1)
        figures.append(draws.figure(first_mean(draws.sums(columns)) / 1e6))
    ours = Figure.combine(np.subtract, *figures).estimate(confidence=0.95, n=150)
    theirs = bootstrap(
        (values_N, values_M),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        n_resamples=20_000,
        method="BCa",
        rng=np.random.default_rng(0),
    )
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.12 * ours.standard_error)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.12 * ours.standard_error)


def test_a_biased_bootstrap_is_corrected() -> None:
    values_R = np.random.default_rng(0).normal(0.5, 1.0, 20_000)  # the figure is 0: resamples lie half a deviation up
    estimate = figure_of(0.0, values_R).estimate(confidence=0.95, n=100)
    assert estimate.low == pytest.approx(-0.5 - 1.96, abs=0.1)
    assert estimate.high == pytest.approx(-0.5 + 1.96, abs=0.1)


def test_an_interval_holds_its_figure_even_where_no_resample_reaches_it() -> None:
    estimate = figure_of(-1.0, np.linspace(0, 1, 101)).estimate(confidence=0.95, n=10)
    assert estimate.low == estimate.value == -1.0


def test_bounds_stop_at_the_least_possible_value() -> None:
    estimate = figure_of(-0.01, np.linspace(-0.05, 0.03, 101)).estimate(confidence=0.95, n=10, least=0.0)
    assert (estimate.value, estimate.low) == (0.0, 0.0)
    assert estimate.high > 0


def test_a_figure_that_never_varies_has_an_interval_of_no_width() -> None:
    estimate = figure_of(0.0, np.zeros(100)).estimate(confidence=0.95, n=10)
    assert (estimate.low, estimate.high, estimate.standard_error) == (0.0, 0.0, 0.0)


def test_undefined_resamples_are_left_out() -> None:
    values_R = np.array([np.nan, np.inf, *np.linspace(0, 1, 99)])
    assert figure_of(0.5, values_R).estimate(confidence=0.9, n=10).low == pytest.approx(0.05, abs=0.01)


def test_wilsons_interval_by_hand() -> None:
    # Wilson 1927 for 8 of 10 at 95 %.
    estimate = proportion_estimate(8, 10, confidence=0.95)
    assert estimate.value == 0.8
    assert (estimate.low, estimate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert estimate.standard_error == pytest.approx(np.sqrt(0.8 * 0.2 / 10))


def test_all_right_is_not_certainly_right() -> None:
    assert proportion_estimate(40, 40, confidence=0.95).low < 0.95


def test_mcnemars_test_by_hand() -> None:
    correct_N = np.array([True] * 8 + [False] * 2 + [True] * 5)
    baseline_N = np.array([False] * 8 + [True] * 2 + [True] * 5)
    # 8 against 2 discordant items: 2 * P(X <= 2) for X ~ Binomial(10, 1/2).
    assert mcnemar_p_value(correct_N, baseline_N) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert mcnemar_p_value(correct_N, correct_N) == 1.0


def swapped(first_N: np.ndarray, second_N: np.ndarray, permutations: int = 20_000) -> float:
    first, second = (np.stack([v, np.ones(len(v))], axis=1) for v in (first_N, second_N))
    return swap_p_value(first, second, first_mean, permutations=permutations, seed=1, stream="movies")


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_swapping_answers_is_scipys_permutation_test(shift: int) -> None:
    rng = np.random.default_rng(shift)
    first_N, second_N = rng.integers(0, 10, (2, 40)).astype(np.float64)
    first_N += shift
    theirs = permutation_test(
        (first_N, second_N),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=rng,
    )
    assert swapped(first_N, second_N) == pytest.approx(theirs.pvalue, abs=0.015)


def test_equal_answers_are_never_told_apart_by_swapping() -> None:
    values_N = np.arange(20.0)
    assert swapped(values_N, values_N) == 1.0


def test_swapping_tests_at_their_level_what_groups_have_in_common() -> None:
    """200 suites of 40 groups of 10 equal items, no real difference: 5 % alarms; single items would give more."""
    rng = np.random.default_rng(5)
    alarms = {"groups": 0, "items": 0}
    for _ in range(200):
        first_N, second_N = np.repeat(rng.integers(0, 5, (2, 40)), 10, axis=1).astype(np.float64)
        alarms["items"] += swapped(first_N, second_N, 200) < 0.05
        first_M, second_M = (v.reshape(40, 10).sum(axis=1) for v in (first_N, second_N))
        alarms["groups"] += swapped(first_M, second_M, 200) < 0.05
    assert alarms["groups"] <= 20
    assert alarms["items"] >= 60


def test_the_bootstraps_p_value_follows_the_interval() -> None:
    values_R = np.linspace(-0.05, 0.95, 1000)  # 5 % are below 0
    assert bootstrap_p_value(figure_of(0.45, values_R)) == pytest.approx(0.1, abs=0.005)
    assert bootstrap_p_value(figure_of(0.0, np.zeros(100))) == 1.0


@pytest.mark.parametrize("p_values", [[0.7], [0.04, 0.01, 0.03, 0.01], [0.9, 0.5, 0.0, 1.0, 0.2]])
def test_holms_correction_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-12)


def coverage(
    simulate: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]], *, rounds: int
) -> dict[str, float]:
    """Share of intervals that hold the truth: difference -0.02, retention 0.84 / 0.86, accuracy 0.84."""
    rng = np.random.default_rng(11)
    truth = {"difference": -0.02, "retention": 0.84 / 0.86, "accuracy": 0.84}
    covered = dict.fromkeys(truth, 0)
    for number in range(rounds):
        units_MK, answers_N = simulate(rng)
        draws = draws_of(len(units_MK), resamples=500, seed=number)
        sums_SK = draws.sums(units_MK)
        teacher, student = (draws.figure(sums_SK[:, column] / sums_SK[:, 2]) for column in (0, 1))
        n = len(answers_N)
        estimates = {
            "difference": Figure.combine(np.subtract, student, teacher).estimate(confidence=0.95, n=n),
            "retention": Figure.combine(np.divide, student, teacher).estimate(confidence=0.95, n=n),
            "accuracy": student.estimate(confidence=0.95, n=n)
            if len(units_MK) < n
            else proportion_estimate(int(answers_N.sum()), n, confidence=0.95),
        }
        for name, estimate in estimates.items():
            covered[name] += estimate.low <= truth[name] <= estimate.high
    return {name: count / rounds for name, count in covered.items()}


KINDS = (0.80, 0.06, 0.04, 0.10)
"""Chances that both are right, only the teacher, only the student, none."""


def independent_items(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    kind_N = rng.choice(4, 500, p=KINDS)
    columns_NK = np.stack([np.isin(kind_N, [0, 1]), np.isin(kind_N, [0, 2]), np.ones(500)], axis=1)
    return columns_NK.astype(np.float64), columns_NK[:, 1]


def items_that_share_sources(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """300 sources with 1 to 6 items each: most items of a source are alike."""
    sources_N = np.repeat(np.arange(300), rng.integers(1, 7, 300))
    alike_N = rng.random(len(sources_N)) < 0.8
    kind_N = np.where(alike_N, rng.choice(4, 300, p=KINDS)[sources_N], rng.choice(4, len(sources_N), p=KINDS))
    columns = [np.isin(kind_N, [0, 1]), np.isin(kind_N, [0, 2]), np.ones(len(kind_N))]
    units = [np.bincount(sources_N, weights=column) for column in columns]
    return np.stack(units, axis=1), columns[1]


@pytest.mark.parametrize("simulate", [independent_items, items_that_share_sources])
def test_intervals_cover_the_truth_as_often_as_they_say(
    simulate: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]],
) -> None:
    """400 simulated suites: coverage of a nominal 95 % interval lies within three of its own standard errors, 3.3 %."""
    shares = coverage(simulate, rounds=400)
    assert all(share == pytest.approx(0.95, abs=0.033) for share in shares.values()), shares
