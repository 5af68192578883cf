"""Per-item records: what every model said about every item. All figures of a run can be recomputed from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import log_softmax

from stillhouse.contract import DataRejected

if TYPE_CHECKING:
    from datasets import Dataset

    from stillhouse.models import Predictions

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("suite", pa.string()),
        ("item_id", pa.string()),
        ("label", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),
        ("loss", pa.float64()),
        ("probabilities", pa.list_(pa.float32())),
        ("truncated", pa.bool_()),
    ],
    metadata={"schema_id": "stillhouse/records/1"},
)
"""``loss`` is the negative log-likelihood of the label in nats; ``prediction`` the most probable label, the first one
of equals; ``truncated`` tells that the model saw only the beginning of the item."""


def score(model_name: str, suite_name: str, dataset: "Dataset", predictions: "Predictions") -> pa.Table:
    """Turn one model's predictions on one suite into records, in the order of the dataset.

    Args:
        model_name: ``teacher``, ``kd``, ``sft``, ``start`` or ``champion``.
        suite_name: Name of the suite.
        dataset: N rows with columns ``id`` and ``label``.
        predictions: Logits (N, C) and truncation flags (N) in the same order.

    Raises:
        DataRejected: Some scores are NaN or infinite, or rows and scores don't match.
    """
    logits_NC = np.asarray(predictions.logits_NC, dtype=np.float64)
    labels_N = np.asarray(dataset["label"], dtype=np.int64)
    if len(logits_NC) != len(labels_N):
        raise DataRejected(
            f"model {model_name} on suite {suite_name}: {len(logits_NC)} scores for {len(labels_N)} items; score again"
        )
    bad = int((~np.isfinite(logits_NC).all(axis=1)).sum())
    if bad:
        raise DataRejected(
            f"model {model_name} on suite {suite_name}: scores of {bad} of {len(labels_N)} items are NaN or infinite; "
            "the model can't be judged, look at its training"
        )
    log_probabilities_NC = log_softmax(logits_NC, axis=1)
    predictions_N = logits_NC.argmax(axis=1)
    offsets = np.arange(0, logits_NC.size + 1, logits_NC.shape[1], dtype=np.int32)
    columns = {
        "model": pa.repeat(model_name, len(labels_N)),
        "suite": pa.repeat(suite_name, len(labels_N)),
        "item_id": pa.array(dataset["id"][:], pa.string()),
        "label": labels_N,
        "prediction": predictions_N,
        "correct": predictions_N == labels_N,
        "loss": -log_probabilities_NC[np.arange(len(labels_N)), labels_N],
        "probabilities": pa.ListArray.from_arrays(offsets, np.exp(log_probabilities_NC).astype(np.float32).ravel()),
        "truncated": np.asarray(predictions.truncated_N, dtype=bool),
    }
    return pa.table(columns, schema=SCHEMA)


def write_records(records: Sequence[pa.Table], path: Path) -> None:
    """Write the records of all models and suites to one Parquet file; equal records give equal bytes.

    Raises:
        OSError: The file can't be written.
    """
    table = pa.concat_tables(records).combine_chunks()
    pq.write_table(table, path, compression="zstd", row_group_size=1 << 20, store_schema=True)


def read_records(path: Path) -> pa.Table:
    """Read what `write_records` wrote.

    Raises:
        DataRejected: The file is not a Parquet file of records.
    """
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataRejected(f"{path}: can't be read as records; evaluate again ({type(error).__name__})") from None
    if not table.schema.equals(SCHEMA):
        raise DataRejected(f"{path}: its columns are not those of stillhouse/records/1; evaluate again")
    return table
