"""From a recipe's tables to the sets that a run works on: clean, sampled, split and firewalled, the same everywhere."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse.contract import DataRejected
from stillhouse.data.contamination import near_duplicates
from stillhouse.data.perturb import perturb
from stillhouse.data.report import Dropped
from stillhouse.data.tables import read_table, row_keys
from stillhouse.recipe import ContaminationConfig, DataConfig, FileSource, Splits

HELD_OUT = {"train": ("validation", "test", "ood-"), "validation": ("test", "ood-")}
"""For each set that teaches or tunes: the sets, or their prefix, that must not share a text with it."""


@dataclass(frozen=True, kw_only=True)
class Tables(Mapping[str, pd.DataFrame]):
    """The sets of a run: ``train``, ``validation``, ``test``, ``ood-NAME`` and ``perturbed-NAME``, in this order."""

    frames: dict[str, pd.DataFrame]
    """Columns ``id``, ``text``, and ``label`` or ``prompt``, ``group`` and slices where there are any; see
    `read_table`."""
    dropped: dict[str, Dropped]
    """By table of the recipe."""
    reference: pd.DataFrame | None = None
    """What coverage compares the training data with, likewise; no model sees it, so it is none of the sets."""

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.frames[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


def load_tables(config: DataConfig, fetch: Callable[[FileSource], Path]) -> Tables:
    """Read, clean, sample, split and perturb everything that the recipe's ``data`` section names.

    A table with ``duplicates: drop`` keeps the first row of every text, and loses the rows whose text a held-out set
    has too: held-out sets stay as they are, what is learned from gives way. With ``duplicates: reject`` nothing is
    lost and the suites find both. The rows that sampling and splitting choose depend on the seed and on the texts
    alone, not on their order, and rows that are added later move few others to another set. After that,
    ``contamination.action: remove`` takes near-duplicates of held-out texts out, whoever cut these sets.

    Args:
        config: Section ``data`` of a recipe.
        fetch: Returns the local file of a source.

    Raises:
        DataRejected: See `read_table`; or the rows don't suffice for the splits.
        ConfigurationError: See `read_table`.
    """
    frames = {name: _read(config, name, fetch) for name in config.named_tables()}
    dropped = {name: Dropped() for name in frames}
    _drop_repeated(config, frames, dropped)
    for name, table in config.named_tables().items():
        kept = sample(frames[name], table.max_rows, seed=config.splits.seed)
        dropped[name] = dropped[name].model_copy(update={"sampled": len(frames[name]) - len(kept)})
        frames[name] = kept
    reference = frames.pop("reference", None)
    frames = split(frames, config.splits)
    if config.contamination and config.contamination.action == "remove":
        _remove_contaminated(config.contamination, frames, dropped)
    for name, frame in frames.items():
        if frame.empty:
            raise DataRejected(f"{name}: no rows are left after cleaning and splitting; provide more data")
    frames |= {f"perturbed-{p.name}": perturb(frames["test"], p) for p in config.perturbations}
    return Tables(frames={n: f.reset_index(drop=True) for n, f in frames.items()}, dropped=dropped, reference=reference)


def read_reference(config: DataConfig, fetch: Callable[[FileSource], Path]) -> pd.DataFrame | None:
    """Return what `load_tables` returns as its reference, without the other tables; None if the recipe has none.

    Raises:
        DataRejected: See `read_table`.
        ConfigurationError: See `read_table`.
    """
    if config.coverage is None:
        return None
    frames = {"reference": _read(config, "reference", fetch)}
    _drop_repeated(config, frames, {"reference": Dropped()})
    return sample(frames["reference"], config.coverage.reference.max_rows, seed=config.splits.seed).reset_index(
        drop=True
    )


def labels_of(name: str, config: DataConfig) -> tuple[str, ...]:
    """Return the label set of a set or of the reference: empty where its labels are not read."""
    unread = {f"ood-{ood.name}" for ood in config.ood if ood.kind == "out-of-scope"}
    if config.coverage and config.coverage.max_label_distance is None:
        unread.add("reference")
    return () if name in unread else config.labels


def held_out_of(name: str, names: Collection[str]) -> list[str]:
    """Return those of ``names`` that must not share a text with the set ``name``."""
    return [other for other in names if name in HELD_OUT and other.startswith(HELD_OUT[name])]


def shares_text(frame: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Mark the rows of ``frame`` whose text occurs in ``other``, whatever its case and white space: bool (N).

    Two answers are the same if their prompts are, too.
    """
    return row_keys(frame).isin(set(row_keys(other)) - {""})


def sample(frame: pd.DataFrame, max_rows: int | None, *, seed: int) -> pd.DataFrame:
    """Keep ``max_rows`` rows, or all, in their order. The texts decide which, not their places."""
    if max_rows is None or len(frame) <= max_rows:
        return frame
    return frame.loc[ranks(frame, f"sample-{seed}").sort_values(kind="stable").index[:max_rows].sort_values()]


def ranks(frame: pd.DataFrame, salt: str) -> pd.Series:
    """Give every row a pseudo-random rank that its text alone decides, so that equal texts have equal ranks."""
    return row_keys(frame).map(lambda key: hashlib.sha256(f"{salt}\n{key}".encode()).hexdigest())


def split(frames: Mapping[str, pd.DataFrame], splits: Splits) -> dict[str, pd.DataFrame]:
    """Cut those of ``validation`` and ``test`` that are missing out of ``train``, label by label if there are any.

    Of a label with N rows, each set gets its share of N, rounded, and at least one row stays in ``train``: a label
    with few rows may be missing from ``validation`` and ``test``, never from ``train``. Rows of one group stay
    together, counted under the label of one of them: a set gets its share or less, by up to a group.

    Args:
        frames: ``train``, maybe ``validation`` and ``test``, and any others.
        splits: The shares and the seed.

    Returns:
        All sets, rows in their order; ``train``, ``validation`` and ``test`` first.
    """
    train = frames["train"]
    cut: dict[str, list[int]] = {"test": [], "validation": []}
    for units in _strata(train, splits.seed):
        num_rows = sum(map(len, units))
        spare = units[:-1]
        for name, share in (("test", splits.test), ("validation", splits.validation)):
            if name not in frames:
                room = round(share * num_rows)
                while spare and len(spare[0]) <= room:
                    room -= len(spare[0])
                    cut[name] += spare.pop(0)
    made = {name: train.loc[sorted(rows)] for name, rows in cut.items() if name not in frames}
    rest = train.drop(index=[row for rows in cut.values() for row in rows])
    result = dict(frames) | made | {"train": rest}
    order = ["train", "validation", "test", *(n for n in frames if n.startswith("ood-"))]
    return {name: result[name] for name in order}


def _strata(train: pd.DataFrame, seed: int) -> list[list[list[int]]]:
    """Return, for each label, its rows in the order in which sets are cut; those of a group are one unit."""
    order = ranks(train, f"split-{seed}").sort_values(kind="stable").index
    group_of = train["group"] if "group" in train else pd.Series(train.index, index=train.index)
    together: dict[Any, list[int]] = {}
    for row, group in zip(order, group_of.loc[order], strict=True):
        together.setdefault(group, []).append(row)
    units = list(together.values())  # in the order of their first rows
    if "label" not in train:
        return [units]
    labels = train["label"].to_dict()
    return [[rows for rows in units if labels[rows[0]] == label] for label in sorted(set(labels.values()))]


def _read(config: DataConfig, name: str, fetch: Callable[[FileSource], Path]) -> pd.DataFrame:
    table = config.named_tables()[name]
    # Classified texts have no prompt, not even where their labels are not read.
    plain = table.model_copy(update={"prompt_column": None}) if config.labels else table
    return read_table(plain, fetch(table.source), labels_of(name, config), name=name)


def _drop_repeated(config: DataConfig, frames: dict[str, pd.DataFrame], dropped: dict[str, Dropped]) -> None:
    """Take out of the tables that say so what occurs twice, then what a held-out set has too."""
    dropping = [name for name, table in config.named_tables().items() if name in frames and table.duplicates == "drop"]
    for name in dropping:
        frames[name], dropped[name] = _drop_duplicates(frames[name])
    for name in dropping:
        leaked = pd.Series(False, index=frames[name].index)
        for other in held_out_of(name, frames):
            leaked |= shares_text(frames[name], frames[other])
        frames[name] = frames[name][~leaked]
        dropped[name] = dropped[name].model_copy(update={"held_out": int(leaked.sum())})


def _remove_contaminated(
    config: ContaminationConfig, frames: dict[str, pd.DataFrame], dropped: dict[str, Dropped]
) -> None:
    for name in reversed(HELD_OUT):  # `train` last, since it need not give way to what `validation` has lost
        others = {other: frames[other] for other in held_out_of(name, frames)}
        near = near_duplicates(frames[name], others, config).any(axis=1)
        frames[name] = frames[name][~near]
        table = name if name in dropped else "train"
        count = dropped[table].contaminated + int(near.sum())
        dropped[table] = dropped[table].model_copy(update={"contaminated": count})


def _drop_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, Dropped]:
    keys = row_keys(frame)
    later = keys.duplicated() & (keys != "")
    if "label" not in frame:
        return frame[~later], Dropped(duplicates=int(later.sum()))
    first_label = frame["label"].groupby(keys).transform("first")
    conflicting = int((later & (frame["label"] != first_label)).sum())
    return frame[~later], Dropped(duplicates=int(later.sum()), conflicting=conflicting)
