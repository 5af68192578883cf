"""Reading files of the supported formats into columns of raw values."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.contract import ConfigurationError, DataRejected
from stillhouse.recipe import Table

SUFFIXES = {
    "csv": (".csv",),
    "tsv": (".tsv", ".txt"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "labelled-lines": (".txt",),
    "paragraphs": (".txt", ".md", ".rst"),
}
"""Of the files that count in a folder."""

PARAGRAPH_BREAK = re.compile(r"\r?\n[^\S\n]*\n\s*")
"""One or more lines of nothing but white space; the indent of the line after them goes too."""


def read_columns(table: Table, path: Path, *, name: str) -> pd.DataFrame:
    """Read every column of the file at ``path``, one row per row of the table, values as they stand in the file.

    Args:
        table: The format and the encoding. ``csv`` follows RFC 4180 quoting; in ``tsv`` a quote is a literal character.
        path: The file; or a folder, whose files of the format's suffixes are read one after the other, by name.
        name: Name of the table, for messages.

    Raises:
        DataRejected: A file is not of its format, or those of a folder differ in their columns. The message names the
            line, never its contents.
        ConfigurationError: A file can't be opened, a folder has none, or Python does not know the encoding.
    """
    if not path.is_dir():
        return _read_file(table, path, name)
    suffixes = SUFFIXES[table.format]
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise ConfigurationError(f"{name}: {path} holds no {' or '.join(suffixes)} file; correct the table's source")
    parts = [_read_file(table, file, f"{name}, {file.relative_to(path)}") for file in files]
    for file, part in zip(files, parts, strict=True):
        if list(part.columns) != list(parts[0].columns):
            raise DataRejected(f"{name}: {file.name} has other columns than {files[0].name}; give them the same ones")
    return pd.concat(parts, ignore_index=True)


def _read_file(table: Table, path: Path, name: str) -> pd.DataFrame:
    try:
        if table.format == "parquet":
            return _read_parquet(path, name)
        text = _decode(path.read_bytes(), table.encoding, name)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigurationError(f"{name}: {path} can't be read ({reason}); correct the table's source") from None
    if table.format == "jsonl":
        return pd.DataFrame(list(_json_rows(text, name)), dtype=object)
    if table.format == "labelled-lines":
        return pd.DataFrame(list(_labelled_rows(text, name)), columns=["label", "text"], dtype=object)
    if table.format == "paragraphs":
        return pd.DataFrame({"text": PARAGRAPH_BREAK.split(text.strip())} if text.strip() else {}, dtype=object)
    return _read_delimited(text, table.format, name)


def _decode(data: bytes, encoding: str, name: str) -> str:
    """Decode, and drop the byte order mark that spreadsheets put in front."""
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise ConfigurationError(f"{name}: Python knows no encoding of that name; utf-8 is the usual one") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise DataRejected(
            f"{name}: line {line} is not valid {encoding}; set the table's encoding or convert the file"
        ) from None


def _read_parquet(path: Path, name: str) -> pd.DataFrame:
    try:
        columns = pq.read_table(path).to_pydict()
    except pa.ArrowInvalid:
        raise DataRejected(f"{name}: {path.name} is not a whole Parquet file; write it again") from None
    return pd.DataFrame(columns, dtype=object)


def _read_delimited(text: str, format_: str, name: str) -> pd.DataFrame:
    stream = io.StringIO(text, newline="")
    # Tab-separated files have no quoting convention: a quote that opens a text must not swallow the lines after it.
    reader = (
        csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        if format_ == "tsv"
        else csv.reader(stream, strict=True)
    )
    rows: list[list[str]] = []
    try:
        for row in reader:
            if rows and row and len(row) != len(rows[0]):
                raise DataRejected(
                    f"{name}: line {reader.line_num} has {len(row)} fields where the header has {len(rows[0])}; "
                    f"correct it or the table's format"
                )
            if row:
                rows.append(row)
    except csv.Error:
        raise DataRejected(f"{name}: line {reader.line_num} is not valid {format_}; check its quotes") from None
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=object)


def _json_rows(text: str, name: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise DataRejected(f"{name}: line {number} is not a JSON object; write one object on each line")
        yield row


def _labelled_rows(text: str, name: str) -> Iterator[list[str]]:
    for number, line in enumerate(text.split("\n"), 1):
        parts = line.split(maxsplit=1)
        if len(parts) == 1:
            raise DataRejected(f"{name}: line {number} has a label without a text; write both on one line")
        if parts:
            yield [parts[0], parts[1].rstrip()]
