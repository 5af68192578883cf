"""Following one run in the terminal: a live table, or plain lines where there is no terminal."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live

from stillhouse.contract import TaskRecord, TryAgain
from stillhouse.orchestration.quickstart.rest import AirflowClient
from stillhouse.orchestration.quickstart.view import (
    TaskRow,
    describe_progress,
    format_seconds,
    render_rows,
    task_rows,
    utc_now,
)
from stillhouse.stages import read_records
from stillhouse.store import ObjectStore

SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_PROGRESS_LINES = 20.0
LOOKS_WITHOUT_ANSWER = 30
"""So many times Airflow may fail to answer before following gives up."""


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """How a run ended."""

    state: str
    """``success`` or ``failed``."""
    rows: list[TaskRow]
    records: dict[str, TaskRecord]


@dataclass(kw_only=True)
class PlainLines:
    """Prints a line whenever a task's state changes, and its progress now and then."""

    console: Console
    _seen: dict[str, str] = field(default_factory=dict)
    _progress_at: dict[str, float] = field(default_factory=dict)

    def show(self, rows: Sequence[TaskRow]) -> None:
        """Print what is new since the last call."""
        for row in rows:
            if row.word in ("waiting", "queued"):
                continue
            if self._seen.get(row.task_id) != row.word:
                self._seen[row.task_id] = row.word
                ended = "" if row.word.startswith("running") else f" {format_seconds(row.seconds)}"
                message = "" if row.word.startswith("running") else f"  {row.message}"
                self._print(f"{row.task_id}: {row.word}{ended}{message}")
                self._progress_at[row.task_id] = time.monotonic()
            elif row.progress and time.monotonic() - self._progress_at[row.task_id] > SECONDS_BETWEEN_PROGRESS_LINES:
                self._progress_at[row.task_id] = time.monotonic()
                self._print(f"{row.task_id}: {describe_progress(row.progress)}")

    def _print(self, line: str) -> None:
        self.console.print(f"{utc_now():%H:%M:%S}  {line.rstrip()}", markup=False, highlight=False, soft_wrap=True)


def follow_run(
    client: AirflowClient,
    store: ObjectStore,
    *,
    dag_id: str,
    run_id: str,
    workflow_run_id: str,
    order: Sequence[tuple[str, tuple[str, int]]],
    console: Console,
) -> RunEnd:
    """Show a run until it has ended.

    Args:
        client: Logged in.
        store: Where the tasks keep their records.
        dag_id: The DAG.
        run_id: The run, as Airflow names it.
        workflow_run_id: The run, as the records name it.
        order: See `task_rows`.
        console: Where to show it.

    Raises:
        TryAgain: Airflow has not answered for a minute.
    """

    def look() -> RunEnd:
        state = client.run_state(dag_id, run_id)
        records = read_records(store, workflow_run_id)
        rows = task_rows(order, client.tasks(dag_id, run_id), records, now=utc_now())
        return RunEnd(state=state, rows=rows, records=records)

    if not console.is_terminal:
        return _until_end(look, PlainLines(console=console).show)
    with Live(console=console, refresh_per_second=4, vertical_overflow="visible") as live:
        return _until_end(look, lambda rows: live.update(render_rows(rows, width=console.width)))


def _until_end(look: Callable[[], RunEnd], show: Callable[[Sequence[TaskRow]], None]) -> RunEnd:
    silent = 0
    while True:
        try:
            now = look()
            silent = 0
        except TryAgain:
            silent += 1
            if silent >= LOOKS_WITHOUT_ANSWER:
                raise
        else:
            show(now.rows)
            if now.state in ("success", "failed"):
                return now
        time.sleep(SECONDS_BETWEEN_LOOKS)
