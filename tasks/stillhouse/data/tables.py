"""Tables of text: from a file of any supported format to id, text, label or prompt, group and slices."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse.contract import DataRejected
from stillhouse.data.reading import read_columns
from stillhouse.recipe import LabelRule, Table, TextRule
from stillhouse.recipe.data import SLICE

NAMED_ROWS = 5
"""Rows that a message lists before it says how many more there are."""

MAX_NAME_CHARACTERS = 64
"""Of an id or a slice: both are shown to people."""


def read_table(table: Table, path: Path, labels: Sequence[str], *, name: str) -> pd.DataFrame:
    """Read the table at ``path``.

    Args:
        table: How to read it.
        path: The file.
        labels: The label set; a row's label becomes its index in it. Empty where labels are not read.
        name: Name of the table, for messages.

    Returns:
        Columns ``id: str``, ``text: str`` (empty where the file has none), ``label: int64`` or, where the table has a
        prompt column and no labels, ``prompt: str``, ``group: str`` where it has a group column, and ``slice:COLUMN:
        str`` for every column of slices, empty where a row has no value; rows in the file's order.

    Raises:
        DataRejected: The file is not of its format, lacks a column, has no rows, or a row without a group, with a
            label outside the label set, with a slice that is no short name, or with a text that the text rule has no
            word for. The message names rows by id, or by line where they have none yet, and never contains text.
        ConfigurationError: The file can't be opened, or its encoding has no such name.
    """
    columns = read_columns(table, path, name=name)
    if not len(columns):
        raise DataRejected(f"{name}: the table has no rows; point its source at a file with data")
    _require_columns(columns, table, name, labelled=bool(labels))
    ids = _ids(columns, table.id_column, name)
    texts = text_values(columns[table.text_column], table.text_rule, ids=ids, name=name)
    result = {"id": ids.to_numpy(dtype=object), "text": _texts(texts, ids, name, "text")}
    if not labels and table.prompt_column is not None:
        result["prompt"] = _texts(columns[table.prompt_column], ids, name, "prompt")
    if table.group_column is not None:
        result["group"] = _groups(columns[table.group_column], ids, name)
    for column in table.slice_columns:
        result[SLICE + column] = _slices(columns[column], ids, name, column)
    frame = pd.DataFrame(result, dtype=object)
    if labels:
        frame["label"] = label_indices(columns[table.label_column], table.label_rule, labels, ids=ids, name=name)
    return frame


def label_indices(
    values: pd.Series, rule: LabelRule, labels: Sequence[str], *, ids: pd.Series, name: str
) -> np.ndarray:
    """Turn the label column's ``values`` (N) into indices into ``labels``: int64 (N).

    Args:
        values: As they stand in the file.
        rule: How a value says what the label is.
        labels: The label set.
        ids: Names of the rows (N), for messages.
        name: Name of the table, for messages.

    Raises:
        DataRejected: A value is missing, is no number where the rule needs one, or names no label of the set.
    """
    if rule.kind == "threshold":
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
        _reject(~numbers.abs().lt(np.inf), ids, name, "whose label is not a finite number")
        return (numbers > rule.threshold).to_numpy(dtype=np.int64)
    _reject(values.map(_is_missing), ids, name, "without a label")
    names = values.map(lambda value: str(value).strip())
    if rule.kind == "prefix":
        names = names.map(lambda value: value.split(rule.separator, 1)[0].strip())
    index = {label: position for position, label in enumerate(labels)}
    indices = names.map(lambda value: index.get(value, -1))
    _reject(indices < 0, ids, name, "with a label that data.labels lacks", "correct them, data.labels or label_rule")
    return indices.to_numpy(dtype=np.int64)


def text_values(values: pd.Series, rule: TextRule, *, ids: pd.Series, name: str) -> pd.Series:
    """Turn the text column's ``values`` (N) into texts (N), as the rule says; ``as-is`` leaves them alone.

    Args:
        values: As they stand in the file.
        rule: How a value becomes a text.
        ids: Names of the rows (N), for messages.
        name: Name of the table, for messages.

    Raises:
        DataRejected: A value is no number where the rule needs one, or has no name in it.
    """
    if rule.kind == "as-is":
        return values
    if rule.kind == "threshold":
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
        _reject(~numbers.abs().lt(np.inf), ids, name, "whose text is not a finite number")
        return numbers.gt(rule.threshold).map({True: rule.above, False: rule.below})
    keys = values.map(lambda value: "" if _is_missing(value) else str(value))
    if rule.separator is not None:
        keys = keys.map(lambda key: key.split(rule.separator, 1)[0])
    words = keys.map(lambda key: rule.names.get(key.strip()))
    _reject(words.isna(), ids, name, "with a text that text_rule.names lacks", "correct them or the names")
    return words


def text_key(text: str) -> str:
    """Return what makes two texts the same: their words without regard to case and white space."""
    return " ".join(text.split()).casefold()


def row_keys(frame: pd.DataFrame) -> pd.Series:
    """Return for each row what makes it the same as another one: str (N), empty without a text.

    It is the text; for an answer the prompt too, since many a question has the answer "yes".
    """
    keys = frame["text"].map(text_key)
    if "prompt" in frame:
        # Keys hold no line break, so that no two pairs of prompt and text have the same one.
        keys = keys.where(keys == "", frame["prompt"].map(text_key) + "\n" + keys)
    return keys.astype(object)


def name_rows(ids: Iterable[object]) -> str:
    """List rows for a message: ``row 3``, ``rows 3, 4`` or ``rows 3, 4, 5, 6, 7 and 12 more``."""
    names = [str(row) for row in ids]
    listed = ", ".join(names[:NAMED_ROWS])
    more = f" and {len(names) - NAMED_ROWS} more" if len(names) > NAMED_ROWS else ""
    return f"{'row' if len(names) == 1 else 'rows'} {listed}{more}"


def _require_columns(columns: pd.DataFrame, table: Table, name: str, *, labelled: bool) -> None:
    fields = ("text_column", "label_column" if labelled else "prompt_column", "group_column", "id_column")
    named = [(field, getattr(table, field)) for field in fields]
    for field, column in (*named, *(("slice_columns", column) for column in table.slice_columns)):
        count = int((columns.columns == column).sum())
        if column is not None and count != 1:
            problem = "no column" if count == 0 else f"{count} columns"
            raise DataRejected(f"{name}: the file has {problem} '{column}'; correct the table's {field}")


def _texts(values: pd.Series, ids: pd.Series, name: str, what: str) -> list[str]:
    _reject(~values.map(_is_text_or_missing).astype(bool), ids, name, f"whose {what} is no string of Unicode")
    return ["" if _is_missing(value) else value for value in values]


def _groups(values: pd.Series, ids: pd.Series, name: str) -> list[str]:
    groups = values.map(lambda value: "" if _is_missing(value) else str(value).strip())
    _reject(groups == "", ids, name, "without a group", "complete them or leave group_column out")
    _reject(~groups.map(_is_text_or_missing), ids, name, "whose group is no string of Unicode")
    return list(groups)


def _slices(values: pd.Series, ids: pd.Series, name: str, column: str) -> list[str]:
    """Return a column of slices. One that could hold texts is refused, since its values appear in reports."""
    slices = values.map(lambda value: "" if _is_missing(value) else str(value).strip())
    unfit = slices.map(lambda value: len(value) > MAX_NAME_CHARACTERS or not value.isprintable())
    action = f"a slice has up to {MAX_NAME_CHARACTERS} printable characters; correct them or slice_columns"
    _reject(unfit, ids, name, f"with an unfit '{column}'", action)
    return list(slices)


def _ids(columns: pd.DataFrame, id_column: str | None, name: str) -> pd.Series:
    """Return the rows' names. A column that could hold texts is refused, since names appear in messages."""
    if id_column is None:
        return pd.Series([str(number) for number in range(len(columns))], dtype=object)
    ids = columns[id_column].map(lambda value: "" if _is_missing(value) else str(value).strip())
    unfit = ids.map(lambda row: not 0 < len(row) <= MAX_NAME_CHARACTERS or not row.isprintable())
    numbers = pd.Series(range(len(columns)))
    action = f"an id has 1 to {MAX_NAME_CHARACTERS} printable characters; correct id_column or leave it out"
    _reject(unfit, numbers, name, "with an unfit id", action)
    return ids


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or value == ""


def _is_text_or_missing(value: object) -> bool:
    """Tell whether a value can be frozen as a text: JSON can spell half a character, which no file can hold."""
    if not isinstance(value, str):
        return _is_missing(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _reject(bad: pd.Series, ids: pd.Series, name: str, problem: str, action: str = "correct or remove them") -> None:
    rows = ids[np.asarray(bad, dtype=bool)]
    if len(rows):
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
        raise DataRejected(f"{name}: {count} {problem} ({name_rows(rows)}); {action}")
