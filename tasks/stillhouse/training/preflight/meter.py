"""How far the probes are, in one figure, although their parts differ in size."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stillhouse.contract import Progress

OnProgress = Callable[[str, Progress], None]
"""Is told what is being done, and how far all of it is."""


class Meter:
    """Adds up the work of many parts.

    Args:
        total: Work in all, in any unit.
        on_progress: Told as parts begin, go on and end.
    """

    def __init__(self, total: float, on_progress: OnProgress | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._done = 0.0
        self._started = time.monotonic()

    @contextmanager
    def part(self, name: str, work: float) -> Iterator[Callable[[Progress], None]]:
        """Within, a part that is ``work`` of the total is under way; yields what to tell its own progress to."""

        def tell(progress: Progress) -> None:
            self._tell(name, self._done + work * min(progress.done / progress.total, 1.0))

        self._tell(name, self._done)
        yield tell
        self._done += work
        self._tell(name, self._done)

    def _tell(self, name: str, done: float) -> None:
        if self._on_progress is None:
            return
        share = min(done / self._total, 1.0)
        left = (time.monotonic() - self._started) * (1 - share) / share if share else None
        self._on_progress(name, Progress(done=round(100 * share, 2), total=100, unit="percent", seconds_left=left))
