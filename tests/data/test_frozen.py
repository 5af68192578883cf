import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Value
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import DataRejected, sha256_of_file
from stillhouse.data import freeze, load_frozen

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ROWS = st.lists(st.tuples(TEXT, TEXT, st.integers(0, 2**62)), max_size=20)


@given(ROWS)
def test_a_frozen_set_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]]
) -> None:
    path = tmp_path_factory.mktemp("frozen") / "set.parquet"
    freeze(pd.DataFrame(rows, columns=["id", "text", "label"]), path)
    loaded = load_frozen(path)
    assert [(row["id"], row["text"], row["label"]) for row in loaded] == rows
    assert loaded.features == {"id": Value("string"), "text": Value("string"), "label": Value("int64")}


def test_the_same_rows_have_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "text": ["x", "y"], "label": [0, 1]})
    freeze(frame, tmp_path / "here.parquet")
    code = (
        "import sys, pathlib, pandas; from stillhouse.data import freeze;"
        "freeze(pandas.DataFrame({'label': [0, 1], 'text': ['x', 'y'], 'id': ['a', 'b']}), pathlib.Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there.parquet")], check=True)
    assert sha256_of_file(tmp_path / "here.parquet") == sha256_of_file(tmp_path / "there.parquet")


def test_the_order_of_the_rows_is_part_of_the_set(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "text": ["x", "y"], "label": [0, 1]})
    freeze(frame, tmp_path / "one.parquet")
    freeze(frame.iloc[::-1], tmp_path / "two.parquet")
    assert sha256_of_file(tmp_path / "one.parquet") != sha256_of_file(tmp_path / "two.parquet")


@pytest.mark.parametrize("columns", [("label",), ("prompt",), ()])
def test_groups_are_kept_where_there_are_any(tmp_path: Path, columns: tuple[str, ...]) -> None:
    frame = pd.DataFrame(
        {"group": ["g", "h"], "id": ["a", "b"], "text": ["x", "y"], "label": [0, 1], "prompt": ["p", "q"]}
    )
    freeze(frame[["group", "id", "text", *columns]], tmp_path / "set.parquet")
    loaded = load_frozen(tmp_path / "set.parquet")
    assert loaded.column_names == ["id", "text", *columns, "group"]
    assert loaded["group"][:] == ["g", "h"]


@pytest.mark.parametrize("columns", [("label",), ("label", "group"), ("prompt",), ()])
@given(st.dictionaries(st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=9), TEXT, max_size=3))
def test_slices_are_kept_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, columns: tuple[str, ...], slices: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("frozen") / "set.parquet"
    plain = {"id": ["a"], "text": ["x"], "label": [0], "group": ["g"], "prompt": ["p"]}
    named = {f"slice:{name}": [value] for name, value in slices.items()}
    freeze(pd.DataFrame(named | {name: plain[name] for name in ("id", "text", *columns)}), path)
    loaded = load_frozen(path)
    assert loaded.column_names == ["id", "text", *columns, *named]
    assert {name: loaded[name][:] for name in named} == named


def test_slices_are_strings(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "text": ["x"], "slice:year": [1999]}), tmp_path / "set.parquet")
    with pytest.raises(DataRejected, match="not a frozen set"):
        load_frozen(tmp_path / "set.parquet")


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.parquet"
    freeze(pd.DataFrame({"id": ["a"], "text": ["x"], "label": [0]}), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataRejected, match=r"set\.parquet: not a whole"):
        load_frozen(path)


def test_another_table_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"], "label": ["yes"]}), tmp_path / "other.parquet")
    with pytest.raises(DataRejected, match="not a frozen set"):
        load_frozen(tmp_path / "other.parquet")
