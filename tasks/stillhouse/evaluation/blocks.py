"""What a task makes of its records for the statistics: per model, columns whose sums give every metric."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.contract import DataRejected, Metric
from stillhouse.evaluation.metrics import Bools, Floats
from stillhouse.recipe.data import SuiteKind

Strings = npt.NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class SuiteInfo:
    """What the records don't say about a suite."""

    name: str
    kind: SuiteKind
    items_sha256: str
    """Digest of the frozen items."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One model on the N items of one suite, as columns whose sums give every metric."""

    columns_NK: Floats
    """Whole numbers (fixed point, `stillhouse.evaluation.metrics.UNIT`), so that sums are exact in any order. Where
    groups are drawn, the number of items varies from draw to draw: a mean divides by the sum of a column of ones.
    Models have the same columns in the same order; only the last ones may be missing."""
    metrics: Mapping[Metric, Callable[[Floats], Floats]]
    """Column sums (R, K) to values (R). The first row is the observed one."""
    proportions: Mapping[Metric, tuple[int, int]]
    """(hits, n) of the metrics that are proportions of independent items: they get Wilson's interval."""
    correct_N: Bools | None
    """For McNemar's test and flips; None for metrics without right and wrong."""
    truncated: int
    """Items of which the model saw only the beginning."""
    per_label: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By label, the columns that count its hits and its items; empty where there are no labels."""
    temperature: float | None = None
    """That was fitted to validation data, if one was."""


@dataclass(frozen=True, kw_only=True)
class SuiteBlocks:
    """All models on one suite: the same items in the same order."""

    metric: Metric
    """By which models are compared here."""
    ids_N: Strings
    """Sorted."""
    groups_N: Strings
    """Items with the same group share a source and are drawn together."""
    slices: Mapping[str, Bools]
    """By name, such as ``genre=drama``, which of the items are in it: shape (N). Sorted by name."""
    models: Mapping[str, Block]


def aligned_rows(records: pa.Table, suite: str, models: Sequence[str]) -> dict[str, pa.Table]:
    """Return each model's rows on a suite in the order of the item ids.

    Args:
        records: Of any task: columns ``model``, ``suite``, ``item_id``, ``group`` and ``slices`` are read.
        suite: Its name.
        models: The first one is whom the others must agree with.

    Raises:
        DataRejected: A model lacks items, has some twice, or disagrees about their groups or slices.
    """
    of_suite = records.filter(pc.field("suite") == suite)
    aligned: dict[str, pa.Table] = {}
    for model in models:
        rows = of_suite.filter(pc.field("model") == model).sort_by("item_id")
        where = f"model {model} on suite {suite}"
        if not rows.num_rows:
            raise DataRejected(f"{where}: no records; score it on every suite")
        twice = rows.num_rows - len(rows["item_id"].unique())
        if twice:
            raise DataRejected(f"{where}: {twice} items occur twice; evaluate again")
        aligned[model] = rows
        first = aligned[models[0]]
        if not rows["item_id"].equals(first["item_id"]):
            odd = len(np.setxor1d(strings(rows["item_id"]), strings(first["item_id"])))
            raise DataRejected(f"{where}: {odd} items differ from the {models[0]}'s; score all models alike")
        for column, what in (("group", "groups"), ("slices", "slices")):
            if not rows[column].equals(first[column]):
                raise DataRejected(f"{where}: some {what} differ from the {models[0]}'s; score all models alike")
    return aligned


def slice_masks(column: pa.ChunkedArray) -> dict[str, Bools]:
    """Turn a column of slices into a mask of the items for each slice; see `SuiteBlocks`."""
    of_items = column.to_pylist()
    members: dict[str, list[int]] = {}
    for item, names in enumerate(of_items):
        for name in names:
            members.setdefault(name, []).append(item)
    masks = {name: np.zeros(len(of_items), dtype=np.bool_) for name in sorted(members)}
    for name, mask_N in masks.items():
        mask_N[members[name]] = True
    return masks


def strings(column: pa.ChunkedArray) -> Strings:
    """Turn a column of strings into an array, shape (N).

    Raises:
        DataRejected: Some are missing.
    """
    if column.null_count:
        raise DataRejected("the records lack some item ids or groups; evaluate again")
    values_N: Strings = column.to_numpy().astype(str)
    return values_N
