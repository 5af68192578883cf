"""How stage ``evaluate`` puts all models to the test: every set to every model, and their records into the store."""

from collections.abc import Callable, Mapping
from functools import partial

import pyarrow as pa
from datasets import Dataset

from stillhouse.contract import Progress
from stillhouse.evaluation import Benchmark, Timed, ask, read_records, write_records
from stillhouse.stages.context import StageContext


class Interview:
    """Asks all models about sets of items, and says how far it is."""

    def __init__(self, context: StageContext, models: Mapping[str, Timed], progress: Callable[[float], None]) -> None:
        self._context = context
        self._models = models
        self._progress = progress
        self._done = 0

    def records(self, output: str, sets: Mapping[str, Dataset | Benchmark]) -> pa.Table:
        """Store the records of all models on all sets as ``output``, and return them as read back.

        Raises:
            DataRejected: A model gives scores that are NaN or infinite, or some rows can't be asked.
            ConfigurationError: A model has too few positions.
        """
        found = []
        for name, model in self._models.items():
            for suite, rows in sets.items():
                report = partial(self._report, self._done, len(rows))
                found.append(ask(name, model, suite, rows, recipe=self._context.recipe, on_progress=report))
                self._done += len(rows)
        path = self._context.workspace / f"{output}.parquet"
        write_records(found, path)
        self._context.save_file(output, path)
        return read_records(path)

    def _report(self, before: int, items: int, part: Progress) -> None:
        self._progress(before + items * part.done / part.total)
