"""The summary follows from the records alone, is paired, and refuses records that can't be compared."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from imaginary import SUITES, make_records

from stillhouse.contract import DataRejected, EvaluationSummary, pretty_json
from stillhouse.evaluation import read_records, summarise, write_records
from stillhouse.recipe import EvaluationConfig

CONFIG = EvaluationConfig(resamples=400)


def summary_of(records: pa.Table, config: EvaluationConfig = CONFIG) -> EvaluationSummary:
    return summarise(records, config=config, suites=SUITES)


def test_the_summary_can_be_recomputed_from_the_stored_records(tmp_path: Path) -> None:
    records = make_records()
    first = summary_of(records)
    write_records([records], tmp_path / "records.parquet")
    again = summary_of(read_records(tmp_path / "records.parquet"))
    assert pretty_json(again) == pretty_json(first)
    assert EvaluationSummary.model_validate_json(pretty_json(first)) == first


def test_the_order_of_records_does_not_count() -> None:
    records = make_records()
    shuffled = records.take(pa.array(np.random.default_rng(0).permutation(records.num_rows)))
    assert summary_of(shuffled) == summary_of(records)


def test_figures_are_those_of_the_records() -> None:
    records = make_records()
    summary = summary_of(records)
    for suite in summary.suites:
        for model, scores in suite.models.items():
            rows = records.filter((pc.field("suite") == suite.name) & (pc.field("model") == model))
            assert scores.accuracy.value == pytest.approx(np.mean(rows["correct"].to_numpy()))
            assert scores.nll.value == pytest.approx(np.mean(rows["loss"].to_numpy()), abs=1e-6)
            assert scores.truncated == 60
            assert scores.accuracy.n == suite.num_items == 600
            for name in ("accuracy", "macro_f1", "ece", "nll"):
                estimate = getattr(scores, name)
                assert estimate.low < estimate.value < estimate.high
                assert estimate.standard_error > 0


def test_models_and_comparisons_are_complete_and_in_order() -> None:
    accuracies = {"champion": (0.85, 0.7), "start": (0.5, 0.5), "sft": (0.84, 0.7), "kd": (0.85, 0.7)}
    summary = summary_of(make_records(accuracies | {"teacher": (0.87, 0.74)}))
    assert summary.models == ("teacher", "kd", "sft", "start", "champion")
    for suite in ("movies", "tweets"):
        for baseline in ("teacher", "sft", "start", "champion"):
            assert summary.comparison(suite, baseline) is not None
    assert set(summary.retention) == {"movies", "tweets"}
    assert set(summary.drops) == set(summary.models)
    assert set(summary.excess_drops) == {"tweets"}
    assert summary.suites[0].models["teacher"].agreement is None


def test_differences_retention_and_drops_add_up() -> None:
    summary = summary_of(make_records())
    accuracy = {
        (suite.name, model): scores.accuracy.value for suite in summary.suites for model, scores in suite.models.items()
    }
    comparison = summary.comparison("movies", "start")
    assert comparison is not None
    assert comparison.difference.value == pytest.approx(accuracy["movies", "kd"] - accuracy["movies", "start"])
    assert comparison.p_value < 1e-6
    kept = accuracy["tweets", "kd"] / accuracy["tweets", "teacher"]
    assert summary.retention["tweets"].value == pytest.approx(kept)
    drops = {model: accuracy["movies", model] - accuracy["tweets", model] for model in ("kd", "teacher")}
    assert summary.drops["kd"]["tweets"].value == pytest.approx(drops["kd"])
    assert summary.excess_drops["tweets"].value == pytest.approx(drops["kd"] - drops["teacher"])


def test_a_drop_has_the_spread_of_two_independent_suites() -> None:
    summary = summary_of(make_records(), EvaluationConfig(resamples=4000))
    parts = [suite.models["kd"].accuracy.standard_error for suite in summary.suites]
    assert summary.drops["kd"]["tweets"].standard_error == pytest.approx(np.hypot(*parts), rel=0.05)


def test_pairing_makes_a_difference_surer_than_its_parts() -> None:
    summary = summary_of(make_records())
    comparison = summary.comparison("movies", "teacher")
    assert comparison is not None
    parts = [summary.suites[0].models[model].accuracy.standard_error for model in ("kd", "teacher")]
    assert comparison.difference.standard_error < 0.8 * np.hypot(*parts)


def test_a_model_compared_with_its_copy_differs_by_nothing() -> None:
    records = make_records({"teacher": (0.8, 0.7), "kd": (0.75, 0.7)})
    mine = records.filter(pc.field("model") == "kd")
    copy = mine.set_column(0, mine.schema.field("model"), pa.repeat("champion", mine.num_rows))
    comparison = summary_of(pa.concat_tables([records, copy])).comparison("movies", "champion")
    assert comparison is not None
    assert (comparison.difference.low, comparison.difference.high, comparison.p_value) == (0.0, 0.0, 1.0)


def test_a_higher_confidence_gives_wider_intervals() -> None:
    records = make_records()
    usual, high = summary_of(records), summary_of(records, EvaluationConfig(resamples=400, confidence=0.99))
    assert high.retention["movies"].low < usual.retention["movies"].low
    assert high.suites[0].models["kd"].accuracy.low < usual.suites[0].models["kd"].accuracy.low


def test_the_draws_of_the_bootstrap_follow_the_seed() -> None:
    records = make_records()
    assert summary_of(records) == summary_of(records)
    other = summary_of(records, EvaluationConfig(resamples=400, seed=1))
    assert other.retention["movies"].value == summary_of(records).retention["movies"].value
    assert other.retention["movies"].low != summary_of(records).retention["movies"].low


def test_a_teacher_that_is_never_right_leaves_no_retention() -> None:
    summary = summary_of(make_records({"teacher": (0.0, 0.5), "kd": (0.5, 0.5)}))
    assert set(summary.retention) == {"tweets"}


@pytest.mark.parametrize("missing", ["teacher", "kd"])
def test_records_without_a_model_that_is_needed_are_refused(missing: str) -> None:
    records = make_records(num_items=20).filter(pc.field("model") != missing)
    with pytest.raises(DataRejected, match=f"no model {missing}"):
        summary_of(records)


def test_a_model_that_was_not_scored_on_a_suite_is_refused() -> None:
    records = make_records(num_items=20)
    records = records.filter(~((pc.field("model") == "kd") & (pc.field("suite") == "tweets")))
    with pytest.raises(DataRejected, match="model kd on suite tweets: no records"):
        summary_of(records)


def test_models_scored_on_other_items_are_refused() -> None:
    records = make_records(num_items=20)
    with pytest.raises(DataRejected, match="model start on suite tweets: 1 items differ"):
        summary_of(records.slice(0, records.num_rows - 1))


def test_items_that_occur_twice_are_refused() -> None:
    records = make_records(num_items=20)
    with pytest.raises(DataRejected, match="model teacher on suite movies: 2 items occur twice"):
        summary_of(pa.concat_tables([records, records.slice(0, 2)]))


def test_models_that_were_given_other_labels_are_refused() -> None:
    records = make_records(num_items=20)
    labels = records["label"].to_numpy().copy()
    labels[-1] = 1 - labels[-1]
    changed = records.set_column(3, records.schema.field("label"), pa.array(labels))
    with pytest.raises(DataRejected, match="model start on suite tweets: some labels differ"):
        summary_of(changed)


def test_stored_losses_that_are_no_numbers_are_refused() -> None:
    records = make_records(num_items=20)
    losses = records["loss"].to_numpy().copy()
    losses[0] = np.nan
    changed = records.set_column(6, records.schema.field("loss"), pa.array(losses))
    with pytest.raises(DataRejected, match="model teacher on suite movies: scores of 1 of 20"):
        summary_of(changed)
