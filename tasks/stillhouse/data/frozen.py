"""Frozen sets: the exact rows that every stage of a run reads, as Parquet files of `datasets`."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

from stillhouse.contract import DataRejected
from stillhouse.recipe.data import SLICE

LABELLED = Features({"id": Value("string"), "text": Value("string"), "label": Value("int64")})
"""Of classification tasks."""
PLAIN = Features({"id": Value("string"), "text": Value("string")})
"""Of language modelling tasks, and of texts that no label fits."""
PROMPTED = Features({"id": Value("string"), "text": Value("string"), "prompt": Value("string")})
"""Of language modelling tasks whose texts answer something."""
GROUP = Features({"group": Value("string")})
"""Added where the table names a column of groups."""
WRITTEN = Features({"teacher": Value("string")})
"""Added where a teacher wrote the text: who did."""
WEIGHTED = Features(WRITTEN | {"weight": Value("float64")})
"""Added where texts count unequally: each one's weight in the loss, on a scale on which plain texts have 1."""
COLUMN_SETS = tuple(
    Features(base | added) for base in (LABELLED, PROMPTED, PLAIN) for added in (Features(), GROUP, WRITTEN, WEIGHTED)
)
"""After them come the slices where there are any: strings, in columns ``slice:COLUMN``, empty without a value."""


def freeze(frame: pd.DataFrame, path: Path) -> None:
    """Write a set to ``path``. Equal rows in equal order give equal bytes.

    Args:
        frame: The columns of one of `COLUMN_SETS`, in any order, and any number of slices.
        path: A file in an existing folder; it is replaced.

    Raises:
        OSError: The file can't be written.
    """
    slices = Features({name: Value("string") for name in frame.columns if name.startswith(SLICE)})
    plain = set(frame.columns) - set(slices)
    features = Features(next(features for features in COLUMN_SETS if set(features) == plain) | slices)
    table = pa.Table.from_pydict(frame[list(features)].to_dict("list"), schema=features.arrow_schema)
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
    features = Features.from_arrow_schema(table.schema)
    plain = {name: kind for name, kind in features.items() if not name.startswith(SLICE) or kind != Value("string")}
    if plain not in COLUMN_SETS:
        raise DataRejected(
            f"{path.name}: not a frozen set of id, text, and label, prompt, group, teacher or slices; run the "
            "stage 'validate' again"
        )
    return Dataset(table)
