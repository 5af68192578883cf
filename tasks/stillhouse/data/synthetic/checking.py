"""The checks of collected data, on what a teacher wrote. Importing this takes seconds."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from stillhouse.data.prepare import Tables, read_reference
from stillhouse.data.report import ValidationReport
from stillhouse.data.suites import validate
from stillhouse.data.synthetic.curate import Curated
from stillhouse.recipe import DataConfig, FileSource


def validate_written(
    curated: Curated,
    held_out: Mapping[str, pd.DataFrame],
    config: DataConfig,
    fetch: Callable[[FileSource], Path],
) -> ValidationReport:
    """Run the suites of a run's data, and its search for leaks, near-duplicates and coverage, on the written set.

    Args:
        curated: With at least one row to learn from.
        held_out: The sets that tune or judge, by name.
        config: Section ``data`` of the recipe.
        fetch: Returns the local file of a source.

    Raises:
        DataRejected: The written set has too few texts to measure coverage.
    """
    known = [name for name in ("validation", "test") if name in held_out]
    order = [*known, *sorted(held_out.keys() - set(known))]
    tables = Tables(
        frames={"train": curated.train} | {name: held_out[name] for name in order},
        dropped={"train": curated.dropped},
        reference=read_reference(config, fetch),
    )
    return validate(tables, config)
