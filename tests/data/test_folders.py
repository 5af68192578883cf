from pathlib import Path

import pytest

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.data.reading import read_columns
from stillhouse.recipe import PathSource, Table


def table(format_: str, folder: Path) -> Table:
    source = PathSource(path=str(folder))
    return Table.model_validate({"source": source, "format": format_, "licence": "MIT", "origin": "made up"})


def test_files_of_a_folder_are_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("text,label\nsecond,1\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.csv").write_text("text,label\nthird,0\n")
    (tmp_path / "a.csv").write_text("text,label\nfirst,0\n")
    (tmp_path / "README.md").write_text("not a table")

    frame = read_columns(table("csv", tmp_path), tmp_path, name="train")

    assert frame["text"].tolist() == ["first", "second", "third"]


def test_plain_texts_of_a_folder_are_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a\n\nb")
    (tmp_path / "two.rst").write_text("c")

    assert read_columns(table("paragraphs", tmp_path), tmp_path, name="train")["text"].tolist() == ["a", "b", "c"]


def test_folder_without_a_table_is_a_mistake_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\n")

    with pytest.raises(ConfigurationError, match=r"holds no \.jsonl or \.ndjson file"):
        read_columns(table("jsonl", tmp_path), tmp_path, name="train")


def test_files_with_other_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfirst,0\n")
    (tmp_path / "b.csv").write_text("text,stars\nsecond,5\n")

    with pytest.raises(DataRejected, match=r"train: b\.csv has other columns than a\.csv"):
        read_columns(table("csv", tmp_path), tmp_path, name="train")


def test_broken_file_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfirst,0\n")
    (tmp_path / "b.csv").write_bytes(b"text,label\n\xff,0\n")

    with pytest.raises(DataRejected, match=r"train, b\.csv: line 2 is not valid utf-8"):
        read_columns(table("csv", tmp_path), tmp_path, name="train")
