"""Tables of language modelling tasks: no labels, maybe prompts, the same cleaning, splitting and checking."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import DataRejected
from stillhouse.data import Dropped, Tables, freeze, load_frozen, load_tables, read_table, reject_if_critical
from stillhouse.data.docs import write_data_docs
from stillhouse.data.prepare import split
from stillhouse.data.suites import validate
from stillhouse.data.tables import row_keys
from stillhouse.recipe import DataConfig, Splits

Make = Callable[..., tuple[Any, Path]]


def _config(prompt_column: str | None = None, **fields: Any) -> DataConfig:
    table = {"source": {"kind": "path", "path": "/x"}, "format": "csv", "licence": "x", "origin": "x"}
    train = table | {"prompt_column": prompt_column} | fields
    return DataConfig.model_validate({"domain": "d", "train": train, "checks": {"min_rows": 2}})


def _sets(**train: list[str]) -> Tables:
    """Return sets whose columns are as given, with other rows in those that are held out."""
    parts = {
        name: pd.DataFrame({column: [f"{name} {value}" for value in values] for column, values in train.items()})
        for name in ("validation", "test")
    }
    frames = {"train": pd.DataFrame(train), **parts}
    for frame in frames.values():
        frame.insert(0, "id", [str(number) for number in range(len(frame))])
    return Tables(frames=frames, dropped={})


def test_a_table_without_labels_needs_no_label_column(make_table: Make) -> None:
    frame = read_table(*make_table("text,more\none,1\n,2\n"), (), name="train")
    assert frame.to_dict("list") == {"id": ["0", "1"], "text": ["one", ""]}


def test_a_prompt_is_read_beside_its_answer(make_table: Make) -> None:
    made = make_table("statement,reply\nWhere?,there\n,here\n", text_column="reply", prompt_column="statement")
    frame = read_table(*made, (), name="train")
    assert frame.to_dict("list") == {"id": ["0", "1"], "text": ["there", "here"], "prompt": ["Where?", ""]}


@pytest.mark.parametrize(
    ("content", "message"),
    [("text\nZebra\n", "no column 'prompt'"), ("text,prompt,prompt\nZebra,a,b\n", "2 columns 'prompt'")],
)
def test_a_missing_prompt_column_is_named(make_table: Make, content: str, message: str) -> None:
    with pytest.raises(DataRejected, match=message):
        read_table(*make_table(content, prompt_column="prompt"), (), name="train")


def test_a_prompt_that_no_file_can_hold_is_refused_without_being_shown(make_table: Make) -> None:
    made = make_table('{"text": "fine", "prompt": "Zebra \\ud800"}', format_="jsonl", prompt_column="prompt")
    with pytest.raises(DataRejected, match="1 row whose prompt is no string") as caught:
        read_table(*made, (), name="train")
    assert "Zebra" not in str(caught.value)


def test_paragraphs_lie_between_empty_lines(make_table: Make) -> None:
    text = "\n\nOne line,\nand another.\r\n \t\r\n\r\n  Second.\n\n\nThird.\n"
    frame = read_table(*make_table(text, format_="paragraphs"), (), name="train")
    assert list(frame["text"]) == ["One line,\nand another.", "Second.", "Third."]


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_an_empty_text_has_no_rows(make_table: Make, content: str) -> None:
    with pytest.raises(DataRejected, match="no rows"):
        read_table(*make_table(content, format_="paragraphs"), (), name="train")


def test_the_same_answer_to_another_question_is_another_row() -> None:
    frame = pd.DataFrame({"text": ["Yes", "yes", "yes ", ""], "prompt": ["A?", "a?", "B?", "C?"]})
    keys = list(row_keys(frame))
    assert keys[0] == keys[1]
    assert len({keys[0], keys[2], keys[3]}) == 3
    assert keys[3] == ""


@given(st.integers(1, 200), st.integers(0, 5))
def test_without_labels_each_set_gets_its_rounded_share_of_the_rows(count: int, seed: int) -> None:
    frame = pd.DataFrame({"id": [str(n) for n in range(count)], "text": [f"text {n}" for n in range(count)]})
    sets = split({"train": frame}, Splits(validation=0.2, test=0.1, seed=seed))
    assert len(sets["test"]) == min(round(0.1 * count), count - 1)
    assert len(sets["validation"]) == min(round(0.2 * count), count - 1 - len(sets["test"]))
    assert sorted(row for part in sets.values() for row in part["id"]) == sorted(frame["id"])


def test_duplicates_are_dropped_and_none_conflicts(make_table: Make) -> None:
    rows = "".join(f"text {number}\n" for number in range(20))
    table, path = make_table(f"text\n{rows}TEXT  3\n", duplicates="drop")
    config = _config().model_copy(update={"train": table})
    tables = load_tables(config, lambda source: path)
    assert sum(map(len, tables.values())) == 20
    assert tables.dropped["train"] == Dropped(duplicates=1)


def test_good_text_passes_and_is_described(tmp_path: Path) -> None:
    report = validate(_sets(text=["one", "two two", "three"]), _config())
    reject_if_critical(report)
    assert report.tables["train"].labels == {}
    assert "label" not in {check.name.split("-")[0] for check in report.checks}
    write_data_docs(report, tmp_path)
    assert "three" not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["one", "ONE", "two"], "with the text of another one"),
        (["one", "", "two"], "without a text"),
        (["one"], "1 of at least 2 rows"),
    ],
)
def test_bad_text_is_rejected(texts: list[str], message: str) -> None:
    with pytest.raises(DataRejected, match=message):
        reject_if_critical(validate(_sets(text=texts), _config()))


def test_a_leak_is_found_without_labels() -> None:
    tables = _sets(text=["one", "two", "three"])
    tables.frames["test"].loc[0, "text"] = " TWO"
    with pytest.raises(DataRejected, match="train: 1 row whose text is also in test"):
        reject_if_critical(validate(tables, _config()))


def test_prompts_are_checked_in_the_sets_that_are_cut_out_of_train_too() -> None:
    tables = _sets(text=["yes", "yes", "yes"], prompt=["a", "b", "c"])
    reject_if_critical(validate(tables, _config(prompt_column="prompt")))
    tables.frames["test"].loc[1, "prompt"] = " "
    with pytest.raises(DataRejected, match=r"test: 1 row without a prompt \(row 1\)"):
        reject_if_critical(validate(tables, _config(prompt_column="prompt")))


@pytest.mark.parametrize("columns", [("id", "text"), ("id", "text", "prompt")])
def test_a_frozen_set_has_the_columns_of_its_task(tmp_path: Path, columns: tuple[str, ...]) -> None:
    frame = pd.DataFrame({column: [f"{column} 1", f"{column} 2"] for column in columns})
    freeze(frame[list(reversed(columns))], tmp_path / "set.parquet")
    loaded = load_frozen(tmp_path / "set.parquet")
    assert tuple(loaded.column_names) == columns
    assert loaded[1] == {column: f"{column} 2" for column in columns}
