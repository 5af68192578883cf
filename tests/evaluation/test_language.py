"""Records of language models hold what was found, and their figures are ratios of sums, exact in any order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_language import texts, tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.contract import DataRejected
from stillhouse.evaluation import SuiteInfo, read_records, summarise, write_records
from stillhouse.evaluation.generation import RightAnswers
from stillhouse.evaluation.language import read_blocks, score_language
from stillhouse.models import Document, Likelihoods, documents_of, likelihoods
from stillhouse.recipe import EvaluationConfig

CONFIG = EvaluationConfig()
MODELS = ("teacher", "kd")


def document(name: str) -> Document:
    return Document(id=name, ids_L=np.asarray([7, 8], dtype=np.int32), labels_L=np.asarray([8, -100], dtype=np.int32))


def found(targets: Sequence[int], losses: Sequence[float], *, coded: bool = True, **changes: Any) -> Likelihoods:
    targets_N = np.asarray(targets, dtype=np.int64)
    plain = {
        "targets_N": targets_N,
        "hits_N": targets_N // 2,
        "losses_N": np.asarray(losses, dtype=np.float64),
        "bytes_N": 4 * targets_N if coded else None,
        "truncated_N": np.zeros(len(targets_N), dtype=np.bool_),
    }
    return Likelihoods(**plain | changes)


def records_of(
    models: dict[str, Likelihoods], *, suite: str = "stories", answers: RightAnswers | None = None, **columns: Any
) -> pa.Table:
    """Return records of one document an item."""
    count = len(next(iter(models.values())).targets_N)
    rows = Dataset.from_dict({"id": [f"i{n}" for n in range(count)]} | columns)
    documents = [document(name) for name in rows["id"]]
    return pa.concat_tables(
        [score_language(model, suite, rows, documents, scores, answers, seed=7) for model, scores in models.items()]
    )


def values(records: pa.Table) -> dict[str, float]:
    block = read_blocks(records, "stories", MODELS, CONFIG).models["kd"]
    sums_RK = block.columns_NK.sum(axis=0, keepdims=True)
    return {name: float(metric(sums_RK)[0]) for name, metric in block.metrics.items()}


def test_pieces_of_a_text_are_added_up_and_a_text_without_targets_is_kept() -> None:
    rows = Dataset.from_dict({"id": ["a", "b#1", "c"], "group": ["g", "g", "h"]})
    pieces = [document(name) for name in ("a", "a#1", "a#2", "b#1", "b#1#1")]
    scores = found([1, 2, 3, 4, 5], [0.5, 1.0, 2.0, 4.0, 8.0], truncated_N=np.asarray([False] * 4 + [True]))
    table = score_language("kd", "stories", rows, pieces, scores, seed=7).to_pydict()
    assert table["item_id"] == ["a", "b#1", "c"]
    assert table["group"] == ["g", "g", "h"]
    assert table["targets"] == [6, 9, 0]
    assert table["hits"] == [0 + 1 + 1, 2 + 2, 0]
    assert table["loss"] == [3.5, 12.0, 0.0]
    assert table["num_bytes"] == [24, 36, 0]
    assert table["truncated"] == [False, True, False]
    assert table["greedy_right"] == table["samples_right"] == table["samples"] == [None] * 3


def test_items_stand_for_themselves_where_there_are_no_groups() -> None:
    table = records_of({"kd": found([1, 2], [1.0, 2.0])})
    assert table["group"].to_pylist() == table["item_id"].to_pylist()


def test_a_record_names_its_slices_and_the_seed_of_the_run() -> None:
    table = records_of({"kd": found([1, 2], [1.0, 2.0])}, **{"slice:genre": ["drama", ""]})
    assert table["slices"].to_pylist() == [["genre=drama"], []]
    assert table["seed"].to_pylist() == [7, 7]


def test_a_slice_has_the_loss_of_its_tokens_and_one_without_a_token_is_left_out() -> None:
    targets = np.asarray([1, 3] * 20 + [0] * 20)
    models = {name: found(targets, [size * n for n in targets.tolist()]) for name, size in (("teacher", 2), ("kd", 3))}
    for losses in (models["teacher"].losses_N, models["kd"].losses_N):
        losses[20:40] *= 1.5
    columns = {"slice:part": ["one"] * 20 + ["two"] * 20 + ["none"] * 20}
    suites = [SuiteInfo(name="stories", kind="in-domain", items_sha256="0" * 64)]
    home = summarise(records_of(models, **columns), config=EvaluationConfig(resamples=200), suites=suites).suites[0]
    slices = home.models["kd"].per_slice
    assert {name: figure.value for name, figure in slices.items()} == {"part=one": 3.0, "part=two": 4.5}
    assert home.models["teacher"].per_slice["part=two"].value == 3.0
    assert {figure.n for figure in slices.values()} == {20}


def test_scores_of_other_items_are_refused() -> None:
    rows = Dataset.from_dict({"id": ["a"]})
    with pytest.raises(DataRejected, match="model kd on suite stories: scores and items differ in number"):
        score_language("kd", "stories", rows, [document("a")], found([1, 2], [1.0, 1.0]), seed=7)
    with pytest.raises(DataRejected, match="1 documents belong to none of its items"):
        score_language("kd", "stories", rows, [document("b")], found([1], [1.0]), seed=7)


@pytest.mark.parametrize("masked", [False, True])
def test_figures_of_a_real_model_come_back_from_its_records(tmp_path: Path, masked: bool) -> None:
    tokenizer, rows = tiny_tokenizer(masked=masked), texts()
    documents = documents_of(
        "masked-lm" if masked else "causal-lm", tokenizer, rows, max_tokens=9, mask_share=0.2, seed=3
    )
    assert len(documents) > len(rows)
    make = tiny_masked if masked else tiny_causal
    scores = {
        name: likelihoods(make(seed=seed), tokenizer, documents, batch_size=8, max_tokens=9)
        for seed, name in enumerate(MODELS)
    }
    tables = [score_language(name, "stories", rows, documents, s, seed=7) for name, s in scores.items()]
    write_records(tables, tmp_path / "r")
    records = read_records(tmp_path / "r")
    blocks = read_blocks(records, "stories", MODELS, CONFIG)
    assert blocks.metric == "nll"
    assert blocks.ids_N.tolist() == sorted(rows["id"])
    student = scores["kd"]
    nll = student.losses_N.sum() / student.targets_N.sum()
    figures = values(records)
    assert figures["nll"] == pytest.approx(nll, abs=1e-6)
    assert figures["perplexity"] == pytest.approx(np.exp(nll), rel=1e-6)
    assert figures["accuracy"] == student.hits_N.sum() / student.targets_N.sum()
    assert ("bits_per_byte" in figures) != masked
    if student.bytes_N is not None:
        bits = student.losses_N.sum() / np.log(2) / student.bytes_N.sum()
        assert figures["bits_per_byte"] == pytest.approx(bits, abs=1e-6)
    assert blocks.models["kd"].correct_N is None
    assert not blocks.models["kd"].proportions


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 2000), st.floats(0, 600)), min_size=2, max_size=40),
    st.randoms(use_true_random=False),
)
def test_sums_are_exact_in_any_order(items: list[tuple[int, float]], random: Any) -> None:
    scores = found([targets for targets, _ in items], [loss for _, loss in items])
    records = records_of({"teacher": scores, "kd": scores})
    columns_NK = read_blocks(records, "stories", MODELS, CONFIG).models["kd"].columns_NK
    order = list(range(len(items)))
    random.shuffle(order)
    assert columns_NK[order].sum(axis=0).tolist() == columns_NK.sum(axis=0).tolist()
    assert columns_NK.tolist() == np.rint(columns_NK).tolist()
    shuffled = records.take(random.sample(range(records.num_rows), records.num_rows))
    assert values(shuffled) == values(records)


def test_mean_loss_weighs_tokens_alike_and_not_items() -> None:
    records = records_of({name: found([1, 9], [10.0, 9.0]) for name in MODELS})
    assert values(records)["nll"] == pytest.approx(1.9)


def test_answers_give_exact_match_and_pass_at_1() -> None:
    answers = RightAnswers(
        greedy_N=np.asarray([True, False, True, True]), samples_N=np.asarray([4, 0, 1, 2]), samples=4
    )
    records = records_of({name: found([1] * 4, [1.0] * 4) for name in MODELS}, answers=answers)
    figures = values(records)
    assert figures["exact_match"] == 3 / 4
    assert figures["pass_at_1"] == 7 / 16
    assert read_blocks(records, "stories", MODELS, CONFIG).models["kd"].proportions == {"exact_match": (3, 4)}


def test_answers_without_samples_have_no_pass_at_1() -> None:
    answers = RightAnswers(greedy_N=np.asarray([True, False]), samples_N=np.zeros(2, dtype=np.int64), samples=0)
    figures = values(records_of({name: found([1] * 2, [1.0] * 2) for name in MODELS}, answers=answers))
    assert figures["exact_match"] == 1 / 2
    assert "pass_at_1" not in figures


def test_summary_compares_language_models_by_their_loss() -> None:
    rng = np.random.default_rng(2)
    targets_N = rng.integers(5, 60, 120)
    hardness_N = rng.gamma(4.0, 0.8, 120)
    models = {
        name: found(targets_N, targets_N * (hardness_N + extra + rng.normal(0, 0.1, 120)).clip(0.1))
        for name, extra in (("teacher", 0.0), ("kd", 0.1), ("start", 1.0))
    }
    answers = RightAnswers(greedy_N=targets_N > 30, samples_N=targets_N % 3, samples=2)
    away = {name: found(scores.targets_N, 1.5 * scores.losses_N) for name, scores in models.items()}
    records = pa.concat_tables([records_of(models, answers=answers), records_of(away, suite="news", answers=answers)])
    suites = (
        SuiteInfo(name="stories", kind="in-domain", items_sha256="1" * 64),
        SuiteInfo(name="news", kind="shifted-domain", items_sha256="2" * 64),
    )
    summary = summarise(records, config=EvaluationConfig(resamples=200), suites=suites)
    score, comparison = summary.suites[0].score("kd"), summary.comparison("stories", "start")
    assert score is not None
    assert comparison is not None
    assert score.value == pytest.approx(values(records)["nll"])
    assert score.low < score.value < score.high
    assert comparison.metric == "nll"
    assert comparison.difference.high < 0 < comparison.gain.low
    assert comparison.p_value < 0.05
    assert summary.drops["kd"]["news"].value == pytest.approx(score.value / 2, rel=1e-6)
    assert not summary.retention
    scores = summary.suites[0].models["kd"].metrics
    assert {"nll", "perplexity", "bits_per_byte", "accuracy", "exact_match", "pass_at_1"} == set(scores)
    assert scores["perplexity"].low == pytest.approx(np.exp(score.low), rel=1e-3)
    assert scores["exact_match"].value == pytest.approx((targets_N > 30).mean())


def answered(models: dict[str, Sequence[bool]], targets: Sequence[int]) -> pa.Table:
    """Return records of models that gave these answers; ``targets`` are those of the last one."""
    tables = []
    for number, (model, right) in enumerate(models.items()):
        last = number == len(models) - 1
        scores = found(targets if last else [3] * len(right), [2.0] * len(right))
        hits_N = np.asarray(right)
        answers = RightAnswers(greedy_N=hits_N, samples_N=2 * hits_N.astype(np.int64), samples=2)
        tables.append(records_of({model: scores}, answers=answers))
    return pa.concat_tables(tables)


def by(metric: str) -> EvaluationConfig:
    return EvaluationConfig.model_validate({"resamples": 200, "generation": {"metric": metric}})


@pytest.mark.parametrize("metric", ["exact_match", "pass_at_1"])
def test_models_that_reason_are_compared_by_their_answers(metric: str) -> None:
    right = np.arange(60) % 3 == 0
    records = answered({"teacher": right | (np.arange(60) % 4 == 0), "kd": right, "start": right & False}, [3] * 60)
    stories = SuiteInfo(name="stories", kind="in-domain", items_sha256="1" * 64)
    summary = summarise(records, config=by(metric), suites=(stories,))
    suite, comparison = summary.suites[0], summary.comparison("stories", "teacher")
    assert suite.metric == metric
    assert comparison is not None
    assert comparison.difference.value == pytest.approx(20 / 60 - 30 / 60)
    assert summary.retention["stories"].value == pytest.approx(20 / 30)
    assert "nll" in suite.models["kd"].metrics
    lost = comparison.flips_lost
    assert (lost.value if lost else None) == (pytest.approx(10 / 60) if metric == "exact_match" else None)


def test_models_of_several_tokenizers_compared_by_answers_have_no_figures_per_token() -> None:
    right = [True, False, True, True]
    records = answered({"teacher": right, "kd": right}, [3, 4, 5, 6])
    blocks = read_blocks(records, "stories", MODELS, by("exact_match"))
    for block in blocks.models.values():
        assert set(block.metrics) == {"bits_per_byte", "exact_match", "pass_at_1"}
    with pytest.raises(DataRejected, match="other target tokens than the teacher"):
        read_blocks(records, "stories", MODELS, by("nll"))


@pytest.mark.parametrize("coded", [False, True])
def test_models_of_another_tokenizer_are_refused(coded: bool) -> None:
    scores = {"teacher": found([3, 5], [3.0, 5.0], coded=coded), "kd": found([3, 4], [3.0, 5.0], coded=coded)}
    with pytest.raises(
        DataRejected, match=r"model kd on suite stories: it has other target tokens .* promotion\.model"
    ):
        read_blocks(records_of(scores), "stories", MODELS, CONFIG)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_that_are_no_numbers_are_refused(bad: float) -> None:
    records = records_of({"teacher": found([1, 1], [1.0, 1.0]), "kd": found([1, 1], [1.0, bad])})
    with pytest.raises(DataRejected, match="model kd on suite stories: losses of 1 of 2 items"):
        read_blocks(records, "stories", MODELS, CONFIG)


def test_losses_that_no_model_has_are_refused() -> None:
    records = records_of({"teacher": found([1, 1], [1.0, 1.0]), "kd": found([1, 1], [1000.0, 500.0])})
    with pytest.raises(DataRejected, match="model kd on suite stories: 750 nats of loss per token"):
        read_blocks(records, "stories", MODELS, CONFIG)


def test_suite_without_a_target_is_refused() -> None:
    records = records_of({name: found([0, 0], [0.0, 0.0]) for name in MODELS})
    with pytest.raises(DataRejected, match="no item has a token to predict"):
        read_blocks(records, "stories", MODELS, CONFIG)


def test_empty_items_make_no_figure_undefined() -> None:
    records = records_of({name: found([0, 2], [0.0, 3.0]) for name in MODELS})
    assert values(records)["nll"] == pytest.approx(1.5)
    block = read_blocks(records, "stories", MODELS, CONFIG).models["kd"]
    # A resample that holds the empty item alone.
    assert np.isnan(block.metrics["nll"](block.columns_NK[:1])).all()
