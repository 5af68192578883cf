"""What a person sees of a running workflow: one row a task, made from Airflow's states and the tasks' own records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stillhouse.contract import Progress, TaskRecord
from stillhouse.orchestration.quickstart.rest import TaskState

WORDS: Mapping[str | None, tuple[str, str]] = {
    None: ("waiting", "dim"),
    "scheduled": ("queued", "dim"),
    "queued": ("queued", "dim"),
    "running": ("running", "cyan"),
    "success": ("done", "green"),
    "failed": ("failed", "bold red"),
    "skipped": ("skipped", "yellow"),
    "upstream_failed": ("not run", "yellow"),
    "up_for_retry": ("will try again", "yellow"),
    "awaiting_input": ("needs your answer", "bold magenta"),
}
"""Airflow's state -> our word and its colour."""


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """One task, as it stands now."""

    task_id: str
    word: str
    style: str
    seconds: float | None
    message: str
    progress: Progress | None


def task_rows(
    order: Sequence[tuple[str, tuple[str, int]]],
    states: Sequence[TaskState],
    records: Mapping[str, TaskRecord],
    *,
    now: datetime,
) -> list[TaskRow]:
    """Return a row for every task.

    Args:
        order: Task ids as the plan names them, each with its place in Airflow: task id and map index.
        states: What Airflow says.
        records: What the tasks say, by task id of the plan.
        now: The current time, for tasks that still run.
    """
    by_place = {(state.task_id, state.map_index): state for state in states}
    return [_row(task_id, by_place.get(place), records.get(task_id), now) for task_id, place in order]


def _row(task_id: str, state: TaskState | None, record: TaskRecord | None, now: datetime) -> TaskRow:
    airflow_state = state.state if state else None
    word, style = WORDS.get(airflow_state, (str(airflow_state), "cyan"))
    running = airflow_state == "running"
    message, progress = "", None
    if record is not None and airflow_state not in (None, "scheduled", "queued", "skipped"):
        message = record.message
        progress = record.progress if running and record.state == "running" else None
        if airflow_state == "success" and record.state == "reused":
            word, style = "reused", "blue"
    if running and state is not None and state.try_number > 1:
        word = f"running, try {state.try_number}"
    return TaskRow(
        task_id=task_id, word=word, style=style, seconds=_seconds(state, now), message=message, progress=progress
    )


def _seconds(state: TaskState | None, now: datetime) -> float | None:
    if state is None or state.start is None or state.state in (None, "scheduled", "queued"):
        return None
    return max(0.0, ((state.end or now) - state.start).total_seconds())


def render_rows(rows: Sequence[TaskRow], *, width: int) -> Table:
    """Return the live table."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), width=width)
    table.add_column("task", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("what", ratio=1, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(row.task_id, Text(row.word, row.style), format_seconds(row.seconds), _what(row))
    return table


def _what(row: TaskRow) -> Table | Text:
    if row.progress is None:
        return Text(row.message, overflow="ellipsis", no_wrap=True)
    line = Table.grid(padding=(0, 1))
    line.add_row(
        ProgressBar(total=row.progress.total, completed=row.progress.done, width=28), describe_progress(row.progress)
    )
    return line


def describe_progress(progress: Progress) -> str:
    """Return how far a task is, how fast, and how long it still needs, in one line."""
    parts = [f"{100 * progress.done / progress.total:3.0f} %  {progress.done:.0f}/{progress.total:.0f} {progress.unit}"]
    if progress.rate is not None:
        parts.append(f"{progress.rate:.0f} {progress.rate_unit}/s")
    if progress.seconds_left is not None:
        parts.append(f"{format_seconds(progress.seconds_left)} left")
    return "  ".join(parts)


def format_seconds(seconds: float | None) -> str:
    """Return a time span for people, empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"


def utc_now() -> datetime:
    """Return the current time."""
    return datetime.now(UTC)
