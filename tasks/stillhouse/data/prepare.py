"""From a recipe's tables to the sets that a run works on: clean, sampled and split, the same on every machine."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import Field

from stillhouse.contract import DataRejected
from stillhouse.data.tables import read_table, row_keys
from stillhouse.recipe import Config, DataConfig, FileSource, Splits

HELD_OUT = {"train": ("validation", "test", "ood-"), "validation": ("test", "ood-")}
"""For each set that teaches or tunes: the sets, or their prefix, that must not share a text with it."""


class Dropped(Config):
    """Rows that a table of the recipe lost on its way into the run."""

    duplicates: int = Field(default=0, ge=0)
    """Later rows of a text that occurs more than once."""
    conflicting: int = Field(default=0, ge=0)
    """Those of the duplicates whose label differs from that of the row that was kept."""
    held_out: int = Field(default=0, ge=0)
    """Rows whose text occurs in a set that the table must not share texts with."""
    sampled: int = Field(default=0, ge=0)
    """Rows beyond ``max_rows``."""


@dataclass(frozen=True, kw_only=True)
class Tables(Mapping[str, pd.DataFrame]):
    """The sets of a run by name: ``train``, ``validation``, ``test`` and ``ood-NAME``, in this order."""

    frames: dict[str, pd.DataFrame]
    """Columns ``id``, ``text``, and ``label`` or ``prompt``; see `read_table`."""
    dropped: dict[str, Dropped]
    """By table of the recipe."""

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.frames[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


def load_tables(config: DataConfig, fetch: Callable[[FileSource], Path]) -> Tables:
    """Read, clean, sample and split everything that the recipe's ``data`` section names.

    A table with ``duplicates: drop`` keeps the first row of every text, and loses the rows whose text a held-out set
    has too: held-out sets stay as they are, what is learned from gives way. With ``duplicates: reject`` nothing is
    lost and the suites find both. The rows that sampling and splitting choose depend on the seed and on the texts
    alone, not on their order, and rows that are added later move few others to another set.

    Args:
        config: Section ``data`` of a recipe.
        fetch: Returns the local file of a source.

    Raises:
        DataRejected: See `read_table`; or the rows don't suffice for the splits.
        ConfigurationError: See `read_table`.
    """
    named = config.named_tables()
    frames = {n: read_table(t, fetch(t.source), config.labels, name=n) for n, t in named.items()}
    dropped = {n: Dropped() for n in named}
    for name, table in named.items():
        if table.duplicates == "drop":
            frames[name], dropped[name] = _drop_duplicates(frames[name])
    for name, table in named.items():
        if table.duplicates == "drop":
            held_out = pd.concat([frames[name].iloc[:0], *(frames[other] for other in held_out_of(name, frames))])
            leaked = shares_text(frames[name], held_out)
            frames[name] = frames[name][~leaked]
            dropped[name] = dropped[name].model_copy(update={"held_out": int(leaked.sum())})
    for name, table in named.items():
        kept = sample(frames[name], table.max_rows, seed=config.splits.seed)
        lost = len(frames[name]) - len(kept)
        frames[name] = kept
        dropped[name] = dropped[name].model_copy(update={"sampled": lost})
    frames = split(frames, config.splits)
    for name, frame in frames.items():
        if frame.empty:
            raise DataRejected(f"{name}: no rows are left after cleaning and splitting; provide more data")
    return Tables(frames={n: f.reset_index(drop=True) for n, f in frames.items()}, dropped=dropped)


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
    return frame.loc[_ranks(frame, f"sample-{seed}").sort_values(kind="stable").index[:max_rows].sort_values()]


def split(frames: Mapping[str, pd.DataFrame], splits: Splits) -> dict[str, pd.DataFrame]:
    """Cut those of ``validation`` and ``test`` that are missing out of ``train``, label by label if there are any.

    Of a label with N rows, each set gets its share of N, rounded, and at least one row stays in ``train``: a label
    with few rows may be missing from ``validation`` and ``test``, never from ``train``.

    Args:
        frames: ``train``, maybe ``validation`` and ``test``, and any others.
        splits: The shares and the seed.

    Returns:
        All sets, rows in their order; ``train``, ``validation`` and ``test`` first.
    """
    train = frames["train"]
    ranks = _ranks(train, f"split-{splits.seed}")
    cut: dict[str, list[int]] = {"test": [], "validation": []}
    strata = train["label"] if "label" in train else pd.Series(0, index=train.index)
    for _, stratum_ranks in ranks.groupby(strata):
        rows = list(stratum_ranks.sort_values(kind="stable").index)
        spare = rows[:-1]
        for name, share in (("test", splits.test), ("validation", splits.validation)):
            if name not in frames:
                count = round(share * len(rows))
                cut[name] += spare[:count]
                spare = spare[count:]
    made = {name: train.loc[sorted(rows)] for name, rows in cut.items() if name not in frames}
    rest = train.drop(index=[row for rows in cut.values() for row in rows])
    result = dict(frames) | made | {"train": rest}
    order = ["train", "validation", "test", *(n for n in frames if n.startswith("ood-"))]
    return {name: result[name] for name in order}


def _drop_duplicates(frame: pd.DataFrame) -> tuple[pd.DataFrame, Dropped]:
    keys = row_keys(frame)
    later = keys.duplicated() & (keys != "")
    if "label" not in frame:
        return frame[~later], Dropped(duplicates=int(later.sum()))
    first_label = frame["label"].groupby(keys).transform("first")
    conflicting = int((later & (frame["label"] != first_label)).sum())
    return frame[~later], Dropped(duplicates=int(later.sum()), conflicting=conflicting)


def _ranks(frame: pd.DataFrame, salt: str) -> pd.Series:
    """Give every row a pseudo-random rank that its text alone decides, so that equal texts have equal ranks."""
    return row_keys(frame).map(lambda key: hashlib.sha256(f"{salt}\n{key}".encode()).hexdigest())
