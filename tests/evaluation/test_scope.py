"""Out-of-scope texts: figures are scikit-learn's, uncertain in both sets, and paired between models."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imaginary import SUITES, as_items, as_predictions, make_records
from sklearn.metrics import roc_auc_score, roc_curve

from stillhouse.contract import DataRejected, EvaluationSummary, SuiteSummary
from stillhouse.evaluation import SuiteInfo, score, summarise
from stillhouse.evaluation.scope import Judge
from stillhouse.recipe import EvaluationConfig

CONFIG = EvaluationConfig(resamples=400)
WEATHER = SuiteInfo(name="weather", kind="out-of-scope", items_sha256="4" * 64)
SHARPNESS = {"teacher": 0.4, "kd": 0.5, "sft": 0.7, "start": 3.0}
"""By model, the size of its logits on foreign texts: smaller is better."""


def foreign_records(
    sharpness: Mapping[str, float] = SHARPNESS, *, num_items: int = 300, groups: int | None = None, seed: int = 0
) -> pa.Table:
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(0, 1, (num_items, 2))
    items = as_items([0] * num_items, "weather").remove_columns("label")
    if groups:
        items = items.add_column("group", [f"g{number % groups}" for number in range(num_items)])
    return pa.concat_tables(
        score(model, "weather", items, as_predictions(size * (logits_NC + rng.normal(0, 0.3, (num_items, 2)))), seed=7)
        for model, size in sharpness.items()
    )


def summary_of(foreign: pa.Table, records: pa.Table | None = None) -> EvaluationSummary:
    records = make_records() if records is None else records
    return summarise(pa.concat_tables([records, foreign]), config=CONFIG, suites=(*SUITES, WEATHER))


def weather_of(summary: EvaluationSummary) -> SuiteSummary:
    suite = summary.suite("weather")
    assert suite is not None
    return suite


def fpr95(inside: np.ndarray, outside: np.ndarray) -> float:
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    rates, sensitivities, _ = roc_curve(truth, np.concatenate([inside, outside]), drop_intermediate=False)
    return float(rates[np.flatnonzero(sensitivities >= 0.95 - 1e-12)[0]])


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.integers(2, 100))
def test_figures_are_scikit_learns_with_ties_and_with_weights(seed: int, n: int, m: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    inside, outside = rng.integers(0, levels, n).astype(float) + 1, rng.integers(0, levels, m).astype(float)
    often_n, often_m = rng.integers(0, 3, n), rng.integers(0, 3, m)
    often_n[0] = often_m[0] = 1
    judge = Judge(inside, outside)
    weights_n, weights_m = np.stack([np.ones(n), often_n]), np.stack([np.ones(m), often_m])
    found = judge(weights_n, weights_m)
    for number, (some, others) in enumerate([(inside, outside), (inside.repeat(often_n), outside.repeat(often_m))]):
        truth = np.repeat([1, 0], [len(some), len(others)])
        assert found[0, number] == pytest.approx(roc_auc_score(truth, np.concatenate([some, others])))
        assert found[1, number] == pytest.approx(fpr95(some, others))


def test_the_summary_has_both_scores_against_the_models_own_in_domain_items() -> None:
    records, foreign = make_records(), foreign_records()
    suite = weather_of(summary_of(foreign, records))
    assert (suite.metric, suite.num_items, suite.num_groups) == ("auroc_confidence", 300, 300)
    for model, scores in suite.models.items():
        mine = records.filter((pc.field("model") == model) & (pc.field("suite") == "movies"))
        theirs = foreign.filter(pc.field("model") == model)
        confidences = [np.stack(t["probabilities"].to_numpy()).max(axis=1) for t in (mine, theirs)]
        energies = [t["energy"].to_numpy() for t in (mine, theirs)]
        for name, pair in (("confidence", confidences), ("energy", energies)):
            truth = np.repeat([1, 0], [600, 300])
            auroc = scores.metrics[f"auroc_{name}"]
            assert auroc.value == pytest.approx(roc_auc_score(truth, np.concatenate(pair)), abs=1e-8)
            assert scores.metrics[f"fpr95_{name}"].value == pytest.approx(fpr95(*pair), abs=1e-8)
            assert auroc.low < auroc.value < auroc.high
        assert set(scores.metrics) == {"auroc_confidence", "fpr95_confidence", "auroc_energy", "fpr95_energy"}
        assert scores.truncated == 30


def test_the_spread_of_an_auroc_is_that_of_its_two_sets() -> None:
    """DeLong et al. 1988: from each item's share of wins."""
    records, foreign = make_records(), foreign_records()
    mine = records.filter((pc.field("model") == "start") & (pc.field("suite") == "movies"))
    theirs = foreign.filter(pc.field("model") == "start")
    energies_N, energies_L = (table["energy"].to_numpy() for table in (mine, theirs))
    wins_NL = (energies_N[:, None] > energies_L) + 0.5 * (energies_N[:, None] == energies_L)
    variance = sum(wins_NL.mean(axis=axis).var(ddof=1) / wins_NL.shape[1 - axis] for axis in (0, 1))
    area = weather_of(summary_of(foreign, records)).models["start"].metrics["auroc_energy"]
    assert area.standard_error == pytest.approx(np.sqrt(variance), rel=0.15)


def test_models_are_compared_paired_and_without_flips_drops_or_retention() -> None:
    summary = summary_of(foreign_records())
    suite = weather_of(summary)
    comparison = summary.comparison("weather", "start")
    assert comparison is not None
    ours, theirs = (suite.models[model].metrics["auroc_confidence"] for model in ("kd", "start"))
    assert comparison.difference.value == pytest.approx(ours.value - theirs.value, abs=1e-8)
    assert comparison.p_value < 0.02
    assert comparison.flips_lost is comparison.flips_won is None
    close = summary.comparison("weather", "teacher")
    assert close is not None
    assert close.difference.standard_error < 0.8 * np.hypot(ours.standard_error,
        suite.models["teacher"].metrics["auroc_confidence"].standard_error)  # fmt: skip
    assert "weather" not in summary.retention
    assert "weather" not in summary.excess_drops
    assert "weather" not in summary.drops["kd"]


def test_a_model_compared_with_its_copy_differs_by_nothing() -> None:
    records, foreign = make_records(), foreign_records()
    both = pa.concat_tables([records, foreign])
    mine = both.filter(pc.field("model") == "kd")
    copy = mine.set_column(0, mine.schema.field("model"), pa.repeat("champion", mine.num_rows))
    comparison = summary_of(copy, both).comparison("weather", "champion")
    assert comparison is not None
    assert (comparison.difference.low, comparison.difference.high, comparison.p_value) == (0.0, 0.0, 1.0)


def test_foreign_texts_of_few_sources_are_less_sure() -> None:
    rng = np.random.default_rng(1)
    logits_NC = np.repeat(rng.normal(0, 1.5, (15, 2)), 20, axis=0)  # 15 sources of 20 equal texts
    items = as_items([0] * 300, "weather").remove_columns("label")
    grouped = items.add_column("group", [f"g{number // 20}" for number in range(300)])

    def area(rows: object) -> SuiteSummary:
        tables = [score(model, "weather", rows, as_predictions(logits_NC), seed=7) for model in SHARPNESS]
        return weather_of(summary_of(pa.concat_tables(tables)))

    alone, together = area(items), area(grouped)
    assert (alone.num_groups, together.num_groups) == (300, 15)
    errors = [suite.models["kd"].metrics["auroc_confidence"].standard_error for suite in (alone, together)]
    assert errors[1] > 2 * errors[0]


def test_foreign_scores_that_are_no_numbers_are_refused() -> None:
    foreign = foreign_records(num_items=20)
    energies = foreign["energy"].to_numpy().copy()
    energies[25] = np.nan
    position = foreign.schema.get_field_index("energy")
    changed = foreign.set_column(position, foreign.schema.field("energy"), pa.array(energies))
    with pytest.raises(DataRejected, match="model kd on suite weather: scores of 1 of 20"):
        summary_of(changed, make_records(num_items=20))


def test_labelled_suites_may_not_lack_labels() -> None:
    records, foreign = make_records(num_items=20), foreign_records(num_items=20)
    as_shifted = SuiteInfo(name="weather", kind="shifted-domain", items_sha256="4" * 64)
    with pytest.raises(DataRejected, match="model teacher on suite weather: 20 items have no label"):
        summarise(pa.concat_tables([records, foreign]), config=CONFIG, suites=(*SUITES, as_shifted))
