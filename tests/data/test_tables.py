import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.data import read_table
from stillhouse.data.tables import label_indices, name_rows, text_key
from stillhouse.recipe.data import LabelByPrefix, LabelByThreshold

Make = Callable[..., tuple[Any, Path]]
LABELS = ("no", "yes")
SECRET = "Zebra"
"""Stands for what a person wrote: no message may contain it."""


def _read(made: tuple[Any, Path], labels: tuple[str, ...] = LABELS) -> list[tuple[str, str, int]]:
    frame = read_table(*made, labels, name="train")
    assert frame.columns.tolist() == ["id", "text", "label"]
    assert frame["label"].dtype == "int64"
    return list(frame.itertuples(index=False, name=None))


def _message(made: tuple[Any, Path], error: type[Exception] = DataRejected) -> str:
    with pytest.raises(error) as caught:
        read_table(*made, LABELS, name="train")
    message = str(caught.value)
    assert message.startswith("train: ")
    assert SECRET not in message
    assert "\n" not in message
    return message


TWO_WORDS = {"kind": "threshold", "below": "Zebra", "above": "Zebra"}
NAMED = {"kind": "names", "names": {"one": "Zebra"}}
ROWS = [("0", "good, really", 1), ("1", 'a "quoted" word', 0)]


def test_csv_follows_its_quoting(make_table: Make) -> None:
    assert _read(make_table('text,label\n"good, really",yes\n"a ""quoted"" word",no\n')) == ROWS


def test_a_quoted_field_may_span_lines(make_table: Make) -> None:
    assert _read(make_table('text,label\r\n"one\ntwo",yes\r\n')) == [("0", "one\ntwo", 1)]


def test_quotes_in_tsv_are_characters(make_table: Make) -> None:
    rows = _read(make_table('text\tlabel\r\ngood, really\tyes\r\n"open\tno\r\na\tyes\r\n', format_="tsv"))
    assert rows == [("0", "good, really", 1), ("1", '"open', 0), ("2", "a", 1)]


def test_jsonl_takes_labels_of_any_scalar_type(make_table: Make) -> None:
    content = "\n".join(json.dumps({"text": "t", "label": label}) for label in (1, "0", 0)) + "\n\n"
    assert [row[2] for row in _read(make_table(content, format_="jsonl"), ("0", "1"))] == [1, 0, 0]


def test_parquet_is_read(tmp_path: Path, make_table: Make) -> None:
    table, path = make_table(b"", format_="parquet")
    pq.write_table(pa.table({"label": ["yes", "no"], "text": ["good, really", 'a "quoted" word']}), path)
    assert _read((table, path)) == ROWS


def test_labelled_lines_split_at_the_first_white_space(make_table: Make) -> None:
    content = "yes   good, really \n\nno\ta b\r\n"
    assert _read(make_table(content, format_="labelled-lines")) == [("0", "good, really", 1), ("1", "a b", 0)]


def test_columns_and_ids_are_the_ones_the_recipe_names(make_table: Make) -> None:
    made = make_table("n,body,y\nr7,hi,yes\n", id_column="n", text_column="body", label_column="y")
    assert _read(made) == [("r7", "hi", 1)]


def test_a_group_column_is_read_as_strings(make_table: Make) -> None:
    made = make_table(
        '{"text": "a", "label": "yes", "article": 7}\n{"text": "b", "label": "no", "article": " x "}',
        format_="jsonl",
        group_column="article",
    )
    frame = read_table(*made, LABELS, name="train")
    assert list(frame["group"]) == ["7", "x"]
    assert set(frame.columns) == {"id", "text", "label", "group"}


@pytest.mark.parametrize(
    ("format_", "content"),
    [
        ("csv", "text,label,genre,year\na,yes, drama ,07\nb,no,,1999\n"),
        ("tsv", "text\tlabel\tgenre\tyear\na\tyes\tdrama\t07\nb\tno\t\t1999\n"),
        (
            "jsonl",
            '{"text": "a", "label": "yes", "genre": "drama", "year": "07"}\n'
            '{"text": "b", "label": "no", "year": 1999}\n',
        ),
    ],
)
def test_slices_are_read_as_they_are_written(make_table: Make, format_: str, content: str) -> None:
    frame = read_table(*make_table(content, format_=format_, slice_columns=["year", "genre"]), LABELS, name="train")
    assert list(frame.columns) == ["id", "text", "slice:year", "slice:genre", "label"]
    assert list(frame["slice:year"]) == ["07", "1999"]
    assert list(frame["slice:genre"]) == ["drama", ""]


def test_slices_of_parquet_and_of_labelled_lines_are_read_too(tmp_path: Path, make_table: Make) -> None:
    table, path = make_table(b"", format_="parquet", slice_columns=["year", "share"])
    pq.write_table(pa.table({"label": ["yes", "no"], "text": ["a", "b"], "year": [7, None], "share": [0.5, 2.0]}), path)
    frame = read_table(table, path, LABELS, name="train")
    assert list(frame["slice:year"]) == ["7", ""]
    assert list(frame["slice:share"]) == ["0.5", "2.0"]
    lines = make_table("yes a\nno b\n", format_="labelled-lines", slice_columns=["label"])
    assert list(read_table(*lines, LABELS, name="train")["slice:label"]) == ["yes", "no"]


@pytest.mark.parametrize(("columns", "problem"), [(["a", "a"], "distinct"), (["a=b"], "pattern"), ([""], "pattern")])
def test_slice_columns_are_distinct_names(make_table: Make, columns: list[str], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make_table("text,label\n", slice_columns=columns)


def _texts(made: tuple[Any, Path]) -> list[str]:
    return list(read_table(*made, (), name="train")["text"])


def test_a_number_becomes_one_of_two_words(make_table: Make) -> None:
    rule = {"kind": "threshold", "threshold": 0.5, "below": "negative", "above": "positive"}
    made = make_table("score,body\n-1,a\n0.5,b\n0.75,c\n", text_column="score", prompt_column="body", text_rule=rule)
    frame = read_table(*made, (), name="train")
    assert list(frame["text"]) == ["negative", "negative", "positive"]
    assert list(frame["prompt"]) == ["a", "b", "c"]


def test_names_become_words_up_to_the_separator_or_as_a_whole(make_table: Make) -> None:
    rule = {"kind": "names", "names": {"LOC": "place", "NUM": "number"}}
    content = "kind\nLOC:city\nNUM :x:y\n LOC\n"
    made = make_table(content, text_column="kind", text_rule=rule | {"separator": ":"})
    assert _texts(made) == ["place", "number", "place"]
    whole = make_table("kind\nNUM\nLOC\n", text_column="kind", text_rule=rule)
    assert _texts(whole) == ["number", "place"]


def test_numbers_of_json_lines_are_named_too(make_table: Make) -> None:
    rule = {"kind": "names", "names": {"0": "no", "1": "yes"}}
    made = make_table('{"y": 1}\n{"y": "0"}\n', format_="jsonl", text_column="y", text_rule=rule)
    assert _texts(made) == ["yes", "no"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(make_table: Make) -> None:
    assert _read(make_table("text,label\nhi,yes\n".encode("utf-8-sig"))) == [("0", "hi", 1)]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_read_when_named(make_table: Make, encoding: str) -> None:
    assert _read(make_table("text,label\ncafé,yes\n".encode(encoding), encoding=encoding)) == [("0", "café", 1)]


def test_a_missing_text_is_an_empty_one(make_table: Make) -> None:
    assert _read(make_table("text,label\n,yes\n")) == [("0", "", 1)]
    assert _read(make_table('{"label": "yes", "text": null}\n{"label": "no"}', format_="jsonl"))[1] == ("1", "", 0)


def test_a_text_that_looks_like_a_missing_value_is_kept(make_table: Make) -> None:
    assert [row[1] for row in _read(make_table("text,label\nNA,yes\nnull,no\nnan,no\n"))] == ["NA", "null", "nan"]


def test_a_broken_encoding_is_named_by_line(make_table: Make) -> None:
    message = _message(make_table(f"text,label\n{SECRET},yes\n".encode() + b"Zebra \xff,no\n"))
    assert "line 3 is not valid utf-8" in message


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        ("", {}, "no rows"),
        ("text,label\n", {}, "no rows"),
        (
            "text,label\nZebra,maybe\nZebra,yes\nZebra,Maybe\n",
            {},
            "2 rows with a label that data.labels lacks (rows 0, 2)",
        ),
        ("text,label\nZebra,\n", {}, "1 row without a label (row 0)"),
        ("text,tag\nZebra,yes\n", {}, "no column 'label'"),
        ("text,label\nZebra,yes\n", {"id_column": "key"}, "no column 'key'"),
        ("text,label\nZebra,yes\n", {"group_column": "key"}, "no column 'key'"),
        ("text,label,key\nZebra,yes,\n", {"group_column": "key"}, "1 row without a group (row 0)"),
        ("text,label\nZebra,yes\n", {"slice_columns": ["key"]}, "no column 'key'; correct the table's slice_columns"),
        (f"text,label,key\na,yes,{'Zebra' * 13}\n", {"slice_columns": ["key"]}, "1 row with an unfit 'key' (row 0)"),
        ('text,label,key\na,yes,"Ze\nbra"\n', {"slice_columns": ["key"]}, "1 row with an unfit 'key' (row 0)"),
        ("text,label,text\nZebra,yes,Zebra\n", {}, "2 columns 'text'"),
        ("text,label\nZebra,yes\nZebra,Zebra,yes\n", {}, "line 3 has 3 fields where the header has 2"),
        ("text,label\nZebra\n", {}, "line 2 has 1 fields"),
        ('text,label\n"Zebra,yes\nZebra,no\n', {}, "not valid csv"),
        ("id,text,label\n,Zebra,yes\n", {"id_column": "id"}, "1 row with an unfit id (row 0)"),
        (f"id,text,label\n{'Zebra' * 20},Zebra,yes\n", {"id_column": "id"}, "unfit id (row 0)"),
        ('id,text,label\n"Ze\nbra",Zebra,yes\n', {"id_column": "id"}, "unfit id (row 0)"),
        ("text,label\nZebra,nan\nZebra,1\n", {"label_rule": {"kind": "threshold"}}, "not a finite number (row 0)"),
        ("text,label\nZebra,inf\n", {"label_rule": {"kind": "threshold"}}, "not a finite number (row 0)"),
        ("text,label\nZebra,Zebra\n", {"label_rule": {"kind": "threshold"}}, "not a finite number (row 0)"),
        ("text,label\n1,yes\nZebra,yes\n,no\n", {"text_rule": TWO_WORDS}, "text is not a finite number (rows 1, 2)"),
        ("text,label\n1,yes\nnan,yes\n-inf,no\n", {"text_rule": TWO_WORDS}, "not a finite number (rows 1, 2)"),
        ("text,label\nZebra,yes\n,yes\none,no\n", {"text_rule": NAMED}, "text_rule.names lacks (rows 0, 1)"),
    ],
)
def test_bad_rows_are_named_and_never_shown(
    make_table: Make, content: str, fields: dict[str, Any], expected: str
) -> None:
    assert expected in _message(make_table(content, **fields))


@pytest.mark.parametrize(
    ("format_", "content", "expected"),
    [
        ("jsonl", '{"text": "Zebra", "label": "yes"}\n{"text": "Zebra\n', "line 2 is not a JSON object"),
        ("jsonl", '["Zebra", "yes"]\n', "line 1 is not a JSON object"),
        ("jsonl", '{"text": ["Zebra"], "label": "yes"}\n', "1 row whose text is no string"),
        ("jsonl", '{"text": "Zebra \\ud800", "label": "yes"}\n', "1 row whose text is no string of Unicode (row 0)"),
        ("labelled-lines", "yes Zebra\nZebra\n", "line 2 has a label without a text"),
        ("parquet", "PAR1 Zebra", "not a whole Parquet file"),
    ],
)
def test_a_file_that_is_not_of_its_format_is_named_by_line(
    make_table: Make, format_: str, content: str, expected: str
) -> None:
    assert expected in _message(make_table(content, format_=format_))


def test_a_long_list_of_rows_is_cut(make_table: Make) -> None:
    message = _message(make_table("text,label\n" + "Zebra,maybe\n" * 30))
    assert "30 rows" in message
    assert "(rows 0, 1, 2, 3, 4 and 25 more)" in message


def test_a_missing_file_is_a_mistake_in_the_recipe(make_table: Make) -> None:
    table, path = make_table("")
    path.unlink()
    assert "can't be read" in _message((table, path), ConfigurationError)


def test_an_unknown_encoding_is_a_mistake_in_the_recipe(make_table: Make) -> None:
    assert "no encoding" in _message(make_table("text,label\n", encoding="utf-99"), ConfigurationError)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.floats(-5, 5))
def test_the_second_label_is_strictly_above_the_threshold(numbers: list[float], threshold: float) -> None:
    values = pd.Series([repr(number) for number in numbers], dtype=object)
    rule = LabelByThreshold(threshold=threshold)
    found = label_indices(values, rule, LABELS, ids=pd.Series(range(len(numbers))), name="t")
    assert found.tolist() == [int(number > threshold) for number in numbers]


@given(st.lists(st.sampled_from(["LOC", "NUM"]), min_size=1, max_size=20), st.text("ab:", max_size=4))
def test_the_prefix_ends_at_the_first_separator(prefixes: list[str], rest: str) -> None:
    values = pd.Series([f"{prefix}:{rest}" for prefix in prefixes], dtype=object)
    ids = pd.Series(range(len(prefixes)))
    found = label_indices(values, LabelByPrefix(), ("LOC", "NUM"), ids=ids, name="t")
    assert found.tolist() == [int(prefix == "NUM") for prefix in prefixes]


@given(st.text(), st.text(" \t\n", max_size=3))
def test_case_and_white_space_do_not_tell_texts_apart(text: str, space: str) -> None:
    assert text_key(space + text.replace(" ", "  ") + space) == text_key(text)
    assert text_key(text_key(text)) == text_key(text)


def test_different_words_tell_texts_apart() -> None:
    assert len({text_key(text) for text in ("ab", "a b", "a  B", "abc")}) == 3


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30))
def test_naming_rows_says_how_many_there_are(ids: list[int]) -> None:
    named = name_rows(ids)
    more = int(named.rsplit(" ", 2)[1]) if named.endswith("more") else 0
    assert named.count(",") + 1 + more == len(ids)
