import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from stillhouse.contract import Progress, TaskRecord
from stillhouse.orchestration.quickstart import TaskState
from stillhouse.orchestration.quickstart.follow import PlainLines
from stillhouse.orchestration.quickstart.view import (
    TaskRow,
    describe_progress,
    format_seconds,
    render_rows,
    task_rows,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
NOW = START + timedelta(seconds=30)
ORDER = [("validate", ("validate", -1)), ("teach-1", ("teach", 1)), ("approve", ("approve", -1))]


def state(task_id: str, word: str | None, *, map_index: int = -1, tries: int = 1) -> TaskState:
    start = START if word not in (None, "queued") else None
    end = START + timedelta(seconds=12) if word in ("success", "failed") else None
    return TaskState(task_id=task_id, map_index=map_index, state=word, try_number=tries, start=start, end=end)


def record(task_id: str, stage: str, word: str, **fields: object) -> TaskRecord:
    return TaskRecord(run_id="r", task_id=task_id, stage=stage, state=word, updated_at=START, **fields)


def test_rows_join_airflow_and_records_by_place() -> None:
    progress = Progress(done=1, total=4, unit="steps", rate=2.0, seconds_left=90)
    rows = task_rows(
        ORDER,
        [state("validate", "success"), state("teach", "running", map_index=1), state("teach", "failed", map_index=0)],
        {
            "validate": record("validate", "validate", "reused", message="same content key"),
            "teach-1": record("teach-1", "teach", "running", progress=progress),
        },
        now=NOW,
    )

    assert [(row.task_id, row.word, row.seconds) for row in rows] == [
        ("validate", "reused", 12.0),
        ("teach-1", "running", 30.0),
        ("approve", "waiting", None),
    ]
    assert rows[1].progress == progress


def test_later_try_and_question_are_named() -> None:
    rows = task_rows(
        ORDER,
        [state("validate", "running", tries=2), state("approve", "awaiting_input")],
        {},
        now=NOW,
    )

    assert [row.word for row in rows] == ["running, try 2", "waiting", "needs your answer"]


def test_old_record_says_nothing_about_a_task_that_waits() -> None:
    rows = task_rows(
        ORDER,
        [state("validate", "queued")],
        {"validate": record("validate", "validate", "failed", message="x")},
        now=NOW,
    )

    assert rows[0].message == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (0.4, "0 s"), (59.6, "1:00 min"), (61, "1:01 min"), (3723, "1:02:03")]
)
def test_time_spans(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_progress_has_rate_and_time_left() -> None:
    progress = Progress(done=250, total=1000, unit="steps", rate=81.2, rate_unit="samples", seconds_left=75)

    assert describe_progress(progress) == " 25 %  250/1000 steps  81 samples/s  1:15 min left"


def row(word: str, message: str = "", progress: Progress | None = None) -> TaskRow:
    return TaskRow(task_id="validate", word=word, style="", seconds=3.0, message=message, progress=progress)


def test_plain_lines_appear_once_per_state() -> None:
    output = io.StringIO()
    lines = PlainLines(console=Console(file=output, width=40))
    for now in (row("waiting"), row("running"), row("running"), row("done", "[all] well"), row("done", "[all] well")):
        lines.show([now])

    shown = [line[10:] for line in output.getvalue().splitlines()]
    assert shown == ["validate: running", "validate: done 3 s  [all] well"]


def test_table_fits_its_width_and_shows_progress() -> None:
    output = io.StringIO()
    progress = Progress(done=1, total=2, unit="steps", rate=2.0)
    console = Console(file=output, width=100, force_terminal=False)
    console.print(render_rows([row("running", progress=progress), row("done", "long " * 60)], width=100))

    assert all(len(line) <= 100 for line in output.getvalue().splitlines())
    assert "50 %" in output.getvalue()
