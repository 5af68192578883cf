"""Records hold what was scored, refuse what can't be judged, and come back from disk unchanged."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from imaginary import as_items, as_predictions, make_records

from stillhouse.contract import DataRejected
from stillhouse.evaluation import read_records, score, write_records
from stillhouse.evaluation.records import LANGUAGE_SCHEMA, SCHEMA


def test_a_record_says_what_the_model_said() -> None:
    logits_NC = np.log(np.array([[0.8, 0.2], [0.9, 0.1]]))
    rows = score("kd", "movies", as_items([0, 1]), as_predictions(logits_NC), seed=7).to_pylist()
    assert [row["item_id"] for row in rows] == ["i0", "i1"]
    assert [row["correct"] for row in rows] == [True, False]
    assert [row["loss"] for row in rows] == pytest.approx([-np.log(0.8), -np.log(0.1)], abs=1e-6)
    assert rows[1]["probabilities"] == pytest.approx([0.9, 0.1])
    assert [row["energy"] for row in rows] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert [row["group"] for row in rows] == ["i0", "i1"]


def test_items_that_share_a_source_keep_its_name() -> None:
    items = as_items([0, 1]).add_column("group", ["article", "article"])
    records = score("kd", "movies", items, as_predictions(np.zeros((2, 2))), seed=7)
    assert records["group"].to_pylist() == ["article"] * 2


def test_a_record_names_its_slices_and_the_seed_of_the_run() -> None:
    items = as_items([0, 1, 1]).add_column("slice:genre", ["drama", "", "a=b"]).add_column("slice:year", ["", "", "07"])
    records = score("kd", "movies", items, as_predictions(np.zeros((3, 2))), seed=7)
    assert records["slices"].to_pylist() == [["genre=drama"], [], ["genre=a=b", "year=07"]]
    assert records["seed"].to_pylist() == [7] * 3
    plain = score("kd", "movies", as_items([0, 1]), as_predictions(np.zeros((2, 2))), seed=7)
    assert plain["slices"].to_pylist() == [[], []]


def test_items_that_no_label_fits_have_scores_and_nothing_else() -> None:
    items = as_items([0]).remove_columns("label")
    row = score("kd", "weather", items, as_predictions(np.array([[3.0, 1.0]])), seed=7)
    assert row.schema.equals(SCHEMA, check_metadata=True)
    assert [row[name][0].as_py() for name in ("label", "correct", "loss")] == [None] * 3
    assert row["prediction"][0].as_py() == 0
    assert row["energy"][0].as_py() == pytest.approx(np.log(np.exp(3) + np.exp(1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused_with_model_suite_and_count(bad: float) -> None:
    logits_NC = np.zeros((5, 2))
    logits_NC[[1, 3], 0] = bad
    with pytest.raises(DataRejected, match="model kd on suite movies: scores of 2 of 5 items are NaN"):
        score("kd", "movies", as_items([0] * 5), as_predictions(logits_NC), seed=7)


def test_scores_for_other_items_are_refused() -> None:
    with pytest.raises(DataRejected, match="4 scores for 5 items"):
        score("kd", "movies", as_items([0] * 5), as_predictions(np.zeros((4, 2))), seed=7)


def test_records_come_back_unchanged_and_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    records = make_records(num_items=50, num_labels=3)
    write_records([records], tmp_path / "a.parquet")
    write_records([records.slice(0, 70), records.slice(70)], tmp_path / "b.parquet")
    assert read_records(tmp_path / "a.parquet").equals(records)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_file_that_holds_no_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataRejected, match="can't be read as records"):
        read_records(tmp_path / "torn.parquet")
    pq.write_table(pa.table({"model": ["kd"]}), tmp_path / "other.parquet")
    with pytest.raises(DataRejected, match="columns"):
        read_records(tmp_path / "other.parquet")


def test_records_of_another_version_are_refused_and_those_of_language_models_are_read(tmp_path: Path) -> None:
    old = SCHEMA.with_metadata({"schema_id": "stillhouse/records/2"})
    pq.write_table(make_records(num_items=5).cast(old), tmp_path / "old.parquet")
    with pytest.raises(DataRejected, match="records of this version"):
        read_records(tmp_path / "old.parquet")
    write_records([LANGUAGE_SCHEMA.empty_table()], tmp_path / "language.parquet")
    schema = read_records(tmp_path / "language.parquet").schema
    assert schema.equals(LANGUAGE_SCHEMA)
    assert schema.metadata == LANGUAGE_SCHEMA.metadata
