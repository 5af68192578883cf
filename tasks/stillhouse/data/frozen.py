"""Frozen sets: the exact rows that every stage of a run reads, as Parquet files of `datasets`."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

from stillhouse.contract import DataRejected

FEATURES = Features({"id": Value("string"), "text": Value("string"), "label": Value("int64")})


def freeze(frame: pd.DataFrame, path: Path) -> None:
    """Write a set to ``path``. Equal rows in equal order give equal bytes.

    Args:
        frame: Columns ``id``, ``text`` and ``label``.
        path: A file in an existing folder; it is replaced.

    Raises:
        OSError: The file can't be written.
    """
    table = pa.Table.from_pydict(frame[list(FEATURES)].to_dict("list"), schema=FEATURES.arrow_schema)
    pq.write_table(table, path)


def load_frozen(path: Path) -> Dataset:
    """Read a set that `freeze` wrote, into memory and without a cache on disk.

    Raises:
        DataRejected: The file is no frozen set.
        OSError: The file can't be read.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid:
        raise DataRejected(f"{path.name}: not a whole Parquet file; run the stage 'validate' again") from None
    if Features.from_arrow_schema(table.schema) != FEATURES:
        raise DataRejected(f"{path.name}: not a frozen set of id, text and label; run the stage 'validate' again")
    return Dataset(table)
