"""A prediction in the terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from stillhouse.contract import METRICS, Preflight, Probe, Progress, signed
from stillhouse.training.preflight.meter import OnProgress

STYLES = {"likely": "green", "unlikely": "red", "open": "yellow"}


def render(prediction: Preflight) -> RenderableType:
    """Return what `rich` prints: the probes, how the teachers compare, and the conclusion."""
    parts: list[RenderableType] = [_probes(prediction)]
    advantages = prediction.choice.advantages if prediction.choice else {}
    parts += [
        Text(f"• students of {name} over those of the recipe's teacher: {signed(advantage)}")
        for name, advantage in advantages.items()
    ]
    if prediction.rows < prediction.train_rows:
        share = f"{100 * prediction.rows / prediction.train_rows:.0f} %"
        parts.append(Text(f"• measured at {share} of the training rows; with all of them a gain may shrink or turn"))
    style = f"bold {STYLES[prediction.own.outlook]}"
    parts.append(Text(prediction.conclusion, style=style))
    return Group(*parts)


def _probes(prediction: Preflight) -> Table:
    what = f"{METRICS[prediction.metric].title} on {prediction.items:,} validation items"
    budget = f"{prediction.repeats} trainings on {prediction.rows:,} of {prediction.train_rows:,} rows each"
    title = f"Preflight of {prediction.recipe}: {what}, {budget}, intervals at {100 * prediction.confidence:g} %"
    table = Table(title=title, title_justify="left")
    for column in ("teacher", "student"):
        table.add_column(column, no_wrap=True)
    for column in ("guess", "its score", "sft", "kd", "kd over sft", "chance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("beats sft?", no_wrap=True)
    for number, probe in enumerate(prediction.probes):
        table.add_row(*_cells(probe), style="bold" if number == 0 else None)
    return table


def _cells(probe: Probe) -> list[str | Text]:
    scores = [f"{probe.scores[model].value:.3f}" for model in ("guess", "teacher", "sft", "kd")]
    return [
        f"{probe.teacher}, {probe.teacher_layers} layers",
        f"{probe.student_layers} layers",
        *scores,
        signed(probe.gain),
        f"{100 * probe.probability:.0f} %",
        Text(probe.outlook, style=STYLES[probe.outlook]),
    ]


@contextmanager
def following(console: Console) -> Iterator[OnProgress]:
    """Show how far the probes are and how long they still need: a bar on a terminal, a line for each part elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("reading the data", total=100, left="")
        said = ""

        def show(doing: str, progress: Progress) -> None:
            nonlocal said
            left = f"{timedelta(seconds=round(progress.seconds_left))} left" if progress.seconds_left else ""
            bar.update(row, description=doing, completed=progress.done, left=left)
            if doing != said and not console.is_terminal:
                console.print(f"{progress.done:3.0f} %  {doing}", highlight=False)
            said = doing

        yield show
