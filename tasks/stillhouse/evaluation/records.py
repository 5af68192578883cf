"""Per-item records: what every model said about every item. All figures of a run can be recomputed from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import log_softmax, logsumexp

from stillhouse.contract import DataRejected
from stillhouse.recipe.data import SLICE

if TYPE_CHECKING:
    from datasets import Dataset

    from stillhouse.models import Predictions

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("suite", pa.string()),
        ("item_id", pa.string()),
        ("seed", pa.int64()),
        ("group", pa.string()),
        ("slices", pa.list_(pa.string())),
        ("label", pa.int64()),
        ("prediction", pa.int64()),
        ("correct", pa.bool_()),
        ("loss", pa.float64()),
        ("probabilities", pa.list_(pa.float32())),
        ("energy", pa.float64()),
        ("truncated", pa.bool_()),
    ],
    metadata={"schema_id": "stillhouse/records/3"},
)
"""Of classifiers. ``seed`` is ``evaluation.seed``, the same throughout a run; ``group`` what items have in common, or
the item's own id; ``slices`` the slices that the item is in, each as ``column=value``; ``loss`` the negative
log-likelihood of the label in nats; ``prediction`` the most probable label, the first one of equals; ``energy`` the
log-sum-exp of the logits; ``truncated`` tells that the model saw only the beginning of the item. ``label``, ``correct``
and ``loss`` are null for items that no label fits. There is no latency, since the items of a batch share a forward
pass: what single items take is measured apart, see `stillhouse.evaluation.timing.LATENCY_SCHEMA`."""

LANGUAGE_SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("suite", pa.string()),
        ("item_id", pa.string()),
        ("seed", pa.int64()),
        ("group", pa.string()),
        ("slices", pa.list_(pa.string())),
        ("targets", pa.int64()),
        ("hits", pa.int64()),
        ("loss", pa.float64()),
        ("num_bytes", pa.int64()),
        ("truncated", pa.bool_()),
        ("greedy_right", pa.bool_()),
        ("samples_right", pa.int64()),
        ("samples", pa.int64()),
    ],
    metadata={"schema_id": "stillhouse/language-records/2"},
)
"""Of language models. ``seed`` is ``evaluation.seed``, under which answers are drawn; ``group`` and ``slices`` are as
in `SCHEMA`, and there is no latency for the same reason. ``targets`` counts the tokens that carry loss, ``hits`` those
that were most probable, ``loss`` is their summed negative log-likelihood in nats, ``num_bytes`` the UTF-8 bytes that
they stand for (null for masked models). ``truncated`` tells that the text was cut. ``greedy_right``, ``samples_right``
and ``samples`` (answers drawn) are null where no answers were generated. Answers themselves are not kept. An item of a
benchmark has one target, which is hit if the answer is right; its loss is that of the right answer, null where the
model writes."""


def score(model_name: str, suite_name: str, dataset: "Dataset", predictions: "Predictions", *, seed: int) -> pa.Table:
    """Turn one classifier's predictions on one suite into records, in the order of the dataset.

    Args:
        model_name: ``teacher``, ``kd``, ``sft``, ``start`` or ``champion``.
        suite_name: Name of the suite.
        dataset: N rows with columns ``id``, ``label`` unless no label fits, ``group`` where items share sources, and
            ``slice:COLUMN`` where they are sliced.
        predictions: Logits (N, C) and truncation flags (N) in the same order.
        seed: Of the run.

    Raises:
        DataRejected: Some scores are NaN or infinite, or rows and scores don't match.
    """
    logits_NC = np.asarray(predictions.logits_NC, dtype=np.float64)
    where = f"model {model_name} on suite {suite_name}"
    if len(logits_NC) != len(dataset):
        raise DataRejected(f"{where}: {len(logits_NC)} scores for {len(dataset)} items; score again")
    bad = int((~np.isfinite(logits_NC).all(axis=1)).sum())
    if bad:
        raise DataRejected(
            f"{where}: scores of {bad} of {len(logits_NC)} items are NaN or infinite; "
            "the model can't be judged, look at its training"
        )
    log_probabilities_NC = log_softmax(logits_NC, axis=1)
    predictions_N = logits_NC.argmax(axis=1)
    offsets = np.arange(0, logits_NC.size + 1, logits_NC.shape[1], dtype=np.int32)
    ids = dataset["id"][:]
    nothing: dict[str, Any] = {name: pa.nulls(len(ids)) for name in ("label", "correct", "loss")}
    columns = nothing | {
        "model": pa.repeat(model_name, len(ids)),
        "suite": pa.repeat(suite_name, len(ids)),
        "item_id": pa.array(ids, pa.string()),
        "seed": pa.array([seed] * len(ids), pa.int64()),
        "slices": slices_of(dataset),
        "group": pa.array(dataset["group"][:] if "group" in dataset.column_names else ids, pa.string()),
        "prediction": predictions_N,
        "probabilities": pa.ListArray.from_arrays(offsets, np.exp(log_probabilities_NC).astype(np.float32).ravel()),
        "energy": logsumexp(logits_NC, axis=1),
        "truncated": np.asarray(predictions.truncated_N, dtype=bool),
    }
    if "label" in dataset.column_names:
        labels_N = np.asarray(dataset["label"], dtype=np.int64)
        columns |= {
            "label": labels_N,
            "correct": predictions_N == labels_N,
            "loss": -log_probabilities_NC[np.arange(len(ids)), labels_N],
        }
    return pa.table(columns, schema=SCHEMA)


def slices_of(dataset: "Dataset") -> pa.Array:
    """Return the slices of every row, as lists of ``column=value`` in the order of the columns; shape (N)."""
    columns = {name: dataset[name][:] for name in dataset.column_names if name.startswith(SLICE)}
    titles = {name: name.removeprefix(SLICE) for name in columns}
    slices = [
        [f"{titles[name]}={values[row]}" for name, values in columns.items() if values[row]]
        for row in range(len(dataset))
    ]
    return pa.array(slices, pa.list_(pa.string()))


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
    found = table.schema
    # Parquet names the elements of a list in its own way, which a comparison with metadata would not forgive.
    if not any(found.equals(known) and found.metadata == known.metadata for known in (SCHEMA, LANGUAGE_SCHEMA)):
        raise DataRejected(f"{path}: its columns are not those of records of this version; evaluate again")
    return table
