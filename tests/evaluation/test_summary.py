"""The summary follows from the records alone, is paired, and refuses records that can't be compared."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imaginary import SUITES, make_records
from scipy.stats import entropy

from stillhouse.contract import DataRejected, EvaluationSummary, pretty_json
from stillhouse.evaluation import SuiteInfo, read_records, summarise, write_records
from stillhouse.recipe import EvaluationConfig

CONFIG = EvaluationConfig(resamples=400)
TYPOS = SuiteInfo(name="typos", kind="perturbed", items_sha256="5" * 64)

LABELLED = {"accuracy", "macro_f1", "ece", "brier", "nll"}
FIDELITY = {"agreement", "kl", "overlap"}


def summary_of(records: pa.Table, config: EvaluationConfig = CONFIG) -> EvaluationSummary:
    return summarise(records, config=config, suites=SUITES)


def replaced(records: pa.Table, name: str, values: object) -> pa.Table:
    field = records.schema.field(name)
    return records.set_column(records.schema.get_field_index(name), field, pa.array(values, field.type))


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
            assert scores.metrics["accuracy"].value == pytest.approx(np.mean(rows["correct"].to_numpy()))
            assert scores.metrics["nll"].value == pytest.approx(np.mean(rows["loss"].to_numpy()), abs=1e-6)
            assert scores.truncated == 60
            assert scores.metrics["accuracy"].n == suite.num_items == suite.num_groups == 600
            for label, recall in scores.per_label.items():
                hits = rows.filter(pc.field("label") == int(label))["correct"].to_numpy()
                assert (recall.value, recall.n) == (pytest.approx(hits.mean()), len(hits))
            assert set(scores.metrics) == LABELLED | (set() if model == "teacher" else FIDELITY)
            for estimate in (*scores.metrics.values(), *scores.per_label.values()):
                assert estimate.low < estimate.value < estimate.high
                assert estimate.standard_error > 0


def test_fidelity_is_that_of_the_stored_probabilities() -> None:
    records = make_records(num_labels=3)
    rows = {m: records.filter((pc.field("suite") == "movies") & (pc.field("model") == m)).sort_by("item_id")
            for m in ("teacher", "kd")}  # fmt: skip
    teacher_NC, kd_NC = (np.stack(table["probabilities"].to_numpy()) for table in rows.values())
    metrics = summary_of(records).suites[0].models["kd"].metrics
    assert metrics["kl"].value == pytest.approx(entropy(teacher_NC, kd_NC, axis=1).mean(), abs=1e-6)
    assert metrics["overlap"].value == pytest.approx(np.minimum(teacher_NC, kd_NC).sum(axis=1).mean(), abs=1e-6)
    same = [a == b for a, b in zip(*(table["prediction"].to_pylist() for table in rows.values()), strict=True)]
    assert metrics["agreement"].value == pytest.approx(np.mean(same))


def test_labels_have_their_names_where_they_are_given() -> None:
    summary = summarise(make_records(num_labels=3), config=CONFIG, suites=SUITES, labels=("bad", "fair", "good"))
    assert list(summary.suites[0].models["kd"].per_label) == ["bad", "fair", "good"]


def test_models_and_comparisons_are_complete_and_in_order() -> None:
    accuracies = {"champion": (0.85, 0.7), "start": (0.5, 0.5), "sft": (0.84, 0.7), "kd": (0.85, 0.7)}
    summary = summary_of(make_records(accuracies | {"unfiltered": (0.8, 0.7), "teacher": (0.87, 0.74)}))
    assert summary.models == ("teacher", "kd", "unfiltered", "sft", "start", "champion")
    for suite in ("movies", "tweets"):
        for baseline in ("teacher", "unfiltered", "sft", "start", "champion"):
            assert summary.comparison(suite, baseline) is not None
    assert set(summary.retention) == {"movies", "tweets"}
    assert set(summary.drops) == set(summary.models)
    assert set(summary.excess_drops) == {"tweets"}


def test_a_teacher_that_is_a_server_is_relative_to_nothing() -> None:
    accuracies = {"start": (0.5, 0.5), "unfiltered": (0.84, 0.7), "kd": (0.85, 0.7)}
    records = make_records(accuracies)
    summary = summarise(records, config=CONFIG, suites=SUITES, has_teacher=False)
    assert summary.models == ("kd", "unfiltered", "start")
    assert not summary.has_teacher
    assert (summary.retention, summary.mean_retention, summary.excess_drops) == ({}, None, {})
    assert {c.baseline for c in summary.comparisons} == {"unfiltered", "start"}
    assert set(summary.drops["kd"]) == {"tweets"}
    for suite in summary.suites:
        assert not any(FIDELITY & scores.metrics.keys() for scores in suite.models.values())
    with pytest.raises(DataRejected, match="the records hold no model teacher"):
        summarise(records, config=CONFIG, suites=SUITES)


def test_differences_retention_and_drops_add_up() -> None:
    summary = summary_of(make_records())
    accuracy = {
        (suite.name, model): scores.metrics["accuracy"].value
        for suite in summary.suites
        for model, scores in suite.models.items()
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
    parts = [suite.models["kd"].metrics["accuracy"].standard_error for suite in summary.suites]
    assert summary.drops["kd"]["tweets"].standard_error == pytest.approx(np.hypot(*parts), rel=0.05)


def test_pairing_makes_a_difference_surer_than_its_parts() -> None:
    summary = summary_of(make_records())
    comparison = summary.comparison("movies", "teacher")
    assert comparison is not None
    parts = [summary.suites[0].models[model].metrics["accuracy"].standard_error for model in ("kd", "teacher")]
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
    assert high.suites[0].models["kd"].metrics["accuracy"].low < usual.suites[0].models["kd"].metrics["accuracy"].low


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
    changed = replaced(records, "label", labels)
    with pytest.raises(DataRejected, match="model start on suite tweets: some labels differ"):
        summary_of(changed)


def test_stored_losses_that_are_no_numbers_are_refused() -> None:
    records = make_records(num_items=20)
    losses = records["loss"].to_numpy().copy()
    losses[0] = np.nan
    changed = replaced(records, "loss", losses)
    with pytest.raises(DataRejected, match="model teacher on suite movies: scores of 1 of 20"):
        summary_of(changed)


@pytest.mark.parametrize("name", ["prediction", "probabilities", "energy"])
def test_items_without_scores_are_refused(name: str) -> None:
    records = make_records(num_items=20)
    with pytest.raises(DataRejected, match="model teacher on suite movies: some items were not scored"):
        summary_of(replaced(records, name, [None, *records[name].to_pylist()[1:]]))


def test_labels_that_the_model_has_no_output_for_are_refused() -> None:
    records = make_records(num_items=20)
    with pytest.raises(DataRejected, match="model teacher on suite movies: 1 labels are not among its 2 outputs"):
        summary_of(replaced(records, "label", [2, *records["label"].to_pylist()[1:]]))


def with_groups(records: pa.Table, num_groups: int) -> pa.Table:
    """Give items the group that the number in their id falls into."""
    numbers = [int("".join(c for c in item if c.isdigit())) for item in records["item_id"].to_pylist()]
    return replaced(records, "group", [f"g{number % num_groups}" for number in numbers])


def test_models_that_disagree_about_groups_are_refused() -> None:
    records = with_groups(make_records(num_items=20), 5)
    groups = [*records["group"].to_pylist()[:-1], "other"]
    with pytest.raises(DataRejected, match="model start on suite tweets: some groups differ"):
        summary_of(replaced(records, "group", groups))


def test_a_single_group_is_refused() -> None:
    with pytest.raises(DataRejected, match="suite movies: all items share one group"):
        summary_of(with_groups(make_records(num_items=20), 1))


def grouped_records() -> pa.Table:
    """50 sources of 12 items: all models are right or wrong on whole sources."""
    records = make_records(num_items=50)
    tables = []
    for copy in range(12):
        ids = [f"{item}-{copy}" for item in records["item_id"].to_pylist()]
        tables.append(replaced(replaced(records, "group", records["item_id"].to_pylist()), "item_id", ids))
    return pa.concat_tables(tables)


def test_items_of_one_source_count_as_one_where_uncertainty_is_computed() -> None:
    summary, few = summary_of(grouped_records()), summary_of(make_records(num_items=50))
    suite = summary.suites[0]
    assert (suite.num_items, suite.num_groups) == (600, 50)
    for model, scores in suite.models.items():
        for metric in ("accuracy", "macro_f1", "nll"):
            alone = few.suites[0].models[model].metrics[metric]
            assert scores.metrics[metric].value == pytest.approx(alone.value, abs=1e-6)
            assert scores.metrics[metric].standard_error == pytest.approx(alone.standard_error, rel=0.15)
        for label, recall in scores.per_label.items():
            alone = few.suites[0].models[model].per_label[label]
            assert recall.standard_error == pytest.approx(alone.standard_error, rel=0.25)
    comparison, alone_comparison = (s.comparison("movies", "start") for s in (summary, few))
    assert comparison is not None
    assert alone_comparison is not None
    assert comparison.p_value == pytest.approx(alone_comparison.p_value, abs=0.01)
    for flips, alone in ((comparison.flips_lost, alone_comparison.flips_lost),
                         (comparison.flips_won, alone_comparison.flips_won)):  # fmt: skip
        assert flips is not None
        assert alone is not None
        assert flips.value == pytest.approx(alone.value)
        assert flips.standard_error == pytest.approx(alone.standard_error, rel=0.15)


def perturbed_records(records: pa.Table, seed: int = 1) -> pa.Table:
    """The in-domain records again, some answers turned round."""
    home = records.filter(pc.field("suite") == "movies")
    rng = np.random.default_rng(seed)
    predictions_N = home["prediction"].to_numpy()
    predictions_N = np.where(rng.random(home.num_rows) < 0.05, 1 - predictions_N, predictions_N)
    return replaced(replaced(home, "suite", ["typos"] * home.num_rows), "prediction", predictions_N)


def test_a_perturbed_suite_is_paired_with_the_items_that_were_perturbed() -> None:
    records = make_records()
    both = pa.concat_tables([records, perturbed_records(records)])
    paired = summarise(both, config=CONFIG, suites=(*SUITES, TYPOS))
    foreign = SuiteInfo(name="typos", kind="challenge", items_sha256="5" * 64)
    unpaired = summarise(both, config=CONFIG, suites=(*SUITES, foreign))
    drop, wide_drop = (summary.drops["kd"]["typos"] for summary in (paired, unpaired))
    assert drop.value == wide_drop.value > 0
    assert drop.standard_error < 0.7 * wide_drop.standard_error
    assert drop.high - drop.low < 0.7 * (wide_drop.high - wide_drop.low)
    assert (drop.n, wide_drop.n) == (600, 1200)


def test_a_perturbed_suite_of_other_items_is_refused() -> None:
    records = make_records(num_items=20)
    perturbed = perturbed_records(records)
    ids = [f"other-{item}" for item in perturbed["item_id"].to_pylist()]
    with pytest.raises(DataRejected, match="suite typos: its items are not those of the in-domain suite"):
        summarise(
            pa.concat_tables([records, replaced(perturbed, "item_id", ids)]), config=CONFIG, suites=(*SUITES, TYPOS)
        )


def test_mean_retention_is_the_mean_over_suites_each_counting_alike() -> None:
    records = make_records()
    summary = summarise(pa.concat_tables([records, perturbed_records(records)]), config=CONFIG, suites=(*SUITES, TYPOS))
    assert set(summary.retention) == {"movies", "tweets", "typos"}
    assert summary.mean_retention is not None
    assert summary.mean_retention.value == pytest.approx(np.mean([e.value for e in summary.retention.values()]))
    assert summary.mean_retention.low < summary.mean_retention.value < summary.mean_retention.high


def test_a_benchmark_has_no_drop_and_no_retention() -> None:
    benchmark = SuiteInfo(name="tweets", kind="benchmark", items_sha256="2" * 64)
    summary = summarise(make_records(), config=CONFIG, suites=(SUITES[0], benchmark))
    assert set(summary.retention) == {"movies"}
    assert summary.drops == {model: {} for model in summary.models}
    assert summary.comparison("tweets", "teacher") is not None


def test_p_values_are_adjusted_over_the_suites_of_a_baseline() -> None:
    summary = summary_of(make_records({"teacher": (0.87, 0.80), "kd": (0.84, 0.74), "sft": (0.84, 0.7)}))
    for baseline in ("teacher", "sft"):
        family = [c for c in summary.comparisons if c.baseline == baseline]
        low, high = sorted(family, key=lambda c: c.p_value)
        assert low.p_adjusted == pytest.approx(min(1, 2 * low.p_value))
        assert high.p_adjusted == pytest.approx(max(low.p_adjusted, high.p_value))


def test_flips_count_both_ways_and_add_up_to_the_difference() -> None:
    for records in (make_records(), with_groups(make_records(), 200)):
        comparison = summary_of(records).comparison("movies", "teacher")
        assert comparison is not None
        assert comparison.flips_lost is not None
        assert comparison.flips_won is not None
        gained = comparison.flips_won.value - comparison.flips_lost.value
        assert gained == pytest.approx(comparison.difference.value, abs=1e-8)
        assert comparison.flips_lost.low < comparison.flips_lost.value < comparison.flips_lost.high


def with_slices(records: pa.Table, slices: dict[str, int]) -> pa.Table:
    """Put the first items of every suite, by number, into slices of these sizes."""
    numbers = [int("".join(c for c in item if c.isdigit())) for item in records["item_id"].to_pylist()]
    return replaced(records, "slices", [[name for name, n in slices.items() if number < n] for number in numbers])


def only(records: pa.Table, name: str) -> pa.Table:
    return records.filter(pa.array([name in slices for slices in records["slices"].to_pylist()]))


@pytest.mark.parametrize("groups", [None, 60])
def test_a_slice_has_the_figures_that_its_items_have_alone(groups: int | None) -> None:
    records = with_slices(make_records(num_items=300), {"a=1": 300, "a=2": 90, "b=1": 10, "b=2": 9})
    records = with_groups(records, groups) if groups else records
    summary, alone = summary_of(records), summary_of(only(records, "a=2"))
    for suite, alone_suite in zip(summary.suites, alone.suites, strict=True):
        for model, scores in suite.models.items():
            assert list(scores.per_slice) == ["a=1", "a=2", "b=1"]
            whole, part, expected = scores.per_slice["a=1"], scores.per_slice["a=2"], alone_suite.score(model)
            assert expected is not None
            assert (part.value, part.n) == (expected.value, 90)
            # Resamples of a slice are drawn anew, 400 of them here.
            tolerance = {"abs": 1e-9} if groups is None else {"abs": 0.06}
            assert (part.low, part.high) == pytest.approx((expected.low, expected.high), **tolerance)
            assert part.standard_error == pytest.approx(expected.standard_error, rel=1e-9 if groups is None else 0.2)
            own = suite.score(model)
            assert own is not None
            assert (whole.value, whole.n) == (own.value, 300)


def test_items_of_one_source_count_as_one_in_a_slice_too() -> None:
    records = grouped_records()
    sliced = replaced(records, "slices", [["a=1"]] * records.num_rows)
    suite = summary_of(sliced).suites[0]
    for scores in suite.models.values():
        assert scores.per_slice["a=1"].standard_error == pytest.approx(
            scores.metrics["accuracy"].standard_error, rel=0.15
        )


def test_a_slice_of_a_single_source_is_left_out() -> None:
    records = with_groups(make_records(num_items=60), 3)
    slices = [[f"source={group}", "all=1"] for group in records["group"].to_pylist()]
    suite = summary_of(replaced(records, "slices", slices)).suites[0]
    assert all(list(scores.per_slice) == ["all=1"] for scores in suite.models.values())


def test_models_that_disagree_about_slices_are_refused() -> None:
    records = with_slices(make_records(num_items=20), {"a=1": 15})
    slices = [*records["slices"].to_pylist()[:-1], ["a=1"]]
    with pytest.raises(DataRejected, match="model start on suite tweets: some slices differ"):
        summary_of(replaced(records, "slices", slices))


MANY = settings(max_examples=15, deadline=None)
QUICK = EvaluationConfig(resamples=100)
SEEDS = st.integers(0, 2**16)


def quick_records(seed: int, groups: int | None, kd: float = 0.75) -> pa.Table:
    records = make_records({"teacher": (0.85, 0.7), "kd": (kd, 0.65)}, num_items=60, seed=seed)
    return with_groups(records, groups) if groups else records


@MANY
@given(SEEDS, st.sampled_from([None, 20]))
def test_swapping_two_models_turns_the_difference_round(seed: int, groups: int | None) -> None:
    records = quick_records(seed, groups)
    other = {"teacher": "kd", "kd": "teacher"}
    swapped = replaced(records, "model", [other[model] for model in records["model"].to_pylist()])
    one, two = (summary_of(table, QUICK).comparison("movies", "teacher") for table in (records, swapped))
    assert one is not None
    assert two is not None
    turned = one.difference.negated()
    assert two.difference.value == turned.value
    assert two.difference.standard_error == turned.standard_error
    assert (two.difference.low, two.difference.high) == pytest.approx((turned.low, turned.high), abs=1e-9)
    assert two.p_value == one.p_value
    assert (two.flips_lost, two.flips_won) == (one.flips_won, one.flips_lost)


@MANY
@given(SEEDS, st.sampled_from([None, 20]))
def test_no_order_of_records_changes_a_byte(seed: int, groups: int | None) -> None:
    records = quick_records(seed, groups)
    shuffled = records.take(pa.array(np.random.default_rng(seed).permutation(records.num_rows)))
    assert pretty_json(summary_of(shuffled, QUICK)) == pretty_json(summary_of(records, QUICK))


@MANY
@given(SEEDS, st.sampled_from([None, 20]))
def test_a_model_is_as_good_as_its_copy(seed: int, groups: int | None) -> None:
    records = quick_records(seed, groups)
    mine = records.filter(pc.field("model") == "kd")
    both = pa.concat_tables([records, replaced(mine, "model", ["champion"] * mine.num_rows)])
    comparison = summary_of(both, QUICK).comparison("tweets", "champion")
    assert comparison is not None
    assert (comparison.difference.low, comparison.difference.high) == (0.0, 0.0)
    assert comparison.p_value == comparison.p_adjusted == 1.0


@MANY
@given(SEEDS, st.floats(0.3, 0.8), st.floats(0, 0.2))
def test_a_worse_candidate_never_keeps_more(seed: int, accuracy: float, loss: float) -> None:
    kept = [summary_of(quick_records(seed, None, kd), QUICK).retention["movies"] for kd in (accuracy, accuracy - loss)]
    assert kept[1].value <= kept[0].value
    assert kept[1].low <= kept[0].low + 0.02  # the bounds have the noise of the bootstrap
