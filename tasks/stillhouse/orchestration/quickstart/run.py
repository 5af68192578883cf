"""What ``make run`` does: servers, one run of one recipe, the verdict."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from stillhouse.contract import ConfigurationError, ExitCode, TryAgain
from stillhouse.orchestration.describe import mlflow_workflow_url, recipe_sources
from stillhouse.orchestration.outcome import show_outcome
from stillhouse.orchestration.places import airflow_place, workflow_run_id
from stillhouse.orchestration.plan import plan
from stillhouse.orchestration.quickstart.follow import RunEnd, follow_run
from stillhouse.orchestration.quickstart.rest import AirflowClient
from stillhouse.orchestration.quickstart.servers import (
    Servers,
    adopt,
    running_servers,
    start_servers,
    wait_until_ready,
)
from stillhouse.orchestration.quickstart.settings import USER, RunFolder
from stillhouse.orchestration.quickstart.view import format_seconds, utc_now
from stillhouse.recipe import Recipe, load_recipe
from stillhouse.stages.records import read_result
from stillhouse.store import fetch_source, open_store

SECONDS_FOR_DAG = 120.0


def run_quickstart(
    recipe_file: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    keep: bool = True,
    project: Path | None = None,
) -> ExitCode:
    """Run a recipe through a real Airflow and MLflow on this machine, and follow it.

    Args:
        recipe_file: The recipe. One outside of ``dags/recipes`` is made known to this Airflow only.
        overrides: The run's parameters by dotted recipe field.
        keep: Leave the servers up until Ctrl-C. Servers that were up before are never stopped.
        project: Folder with ``dags``; the current folder by default. ``.run`` is made in it.

    Returns:
        OK if the student serves now or served before, NOT_PROMOTED if the gate or a reviewer said no, else the exit
        code of the task that failed.

    Raises:
        StillhouseError: The run could not be made or followed; the message says what to do.
    """
    root = (project or Path.cwd()).resolve()
    console = Console(highlight=False)
    recipe = load_recipe(recipe_file, overrides)
    folder = RunFolder(root=root / ".run")
    _introduce(console, recipe, recipe_file)
    with _servers(console, folder, root / "dags", lambda: _fetch(console, recipe)) as (servers, fresh, ours):
        _make_known(folder, root, recipe_file)
        with AirflowClient(servers.airflow_url, user=USER, password=folder.password()) as client:
            client.log_in()
            _wait_for_dag(client, recipe.name, recipe_file, servers)
            run_id = _trigger(console, client, recipe.name, overrides or {}, fresh=fresh)
            console.print(f"following {servers.airflow_url}/dags/{recipe.name}/runs/{run_id}\n", soft_wrap=True)
            end = follow_run(
                client,
                open_store(f"file://{folder.store}"),
                dag_id=recipe.name,
                run_id=run_id,
                workflow_run_id=workflow_run_id(recipe.name, run_id),
                order=_order(recipe),
                console=console,
            )
        code = conclude(console, end)
        _show_places(console, servers, folder, recipe, run_id, end)
        if keep and ours:
            console.print("\nThe servers stay up. [bold]Ctrl-C[/] stops them.")
            with suppress(KeyboardInterrupt):
                signal.pause()
    return code


def _introduce(console: Console, recipe: Recipe, recipe_file: Path) -> None:
    console.print(f"[bold]{recipe.name}[/]  {recipe.description}")
    console.print(f"recipe   {recipe_file}", soft_wrap=True)
    for name, origin, licence in recipe_sources(recipe):
        console.print(f"{name:<8} {origin} [dim]({licence})[/]", soft_wrap=True)
    console.print()


@contextmanager
def _servers(
    console: Console, folder: RunFolder, dags: Path, meanwhile: Callable[[], None]
) -> Iterator[tuple[Servers, bool, bool]]:
    """Yield ready servers, whether they were just started, and whether they are ours to stop.

    ``meanwhile`` is done while they start.
    """
    folder.create()
    found = running_servers(folder)
    if found is not None and not adopt(found, folder):
        console.print("MLflow and Airflow are up already, held by another quickstart: using them")
        meanwhile()
        wait_until_ready(found, folder)
        yield found, False, False
        return
    with _signals_interrupt():
        servers = found or start_servers(folder, dags=dags)
        try:
            started = time.monotonic()
            console.print("starting MLflow and Airflow …" if found is None else "MLflow and Airflow are up already")
            meanwhile()
            wait_until_ready(servers, folder)
            if found is None:
                console.print(f"both are ready after {format_seconds(time.monotonic() - started)}")
            yield servers, found is None, True
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            console.print("stopping the servers …")
            servers.stop()
            folder.state_file.unlink(missing_ok=True)


def _fetch(console: Console, recipe: Recipe) -> None:
    """Fetch what the recipe names, so that it is seen to happen; the tasks find it in the cache."""
    tables = {name: table.source for name, table in recipe.data.named_tables().items()}
    sources = tables | ({"teacher": recipe.teacher.source} if recipe.teacher.source else {})
    for name, source in sources.items():
        if source.kind != "path":
            with console.status(f"fetching {name}: {source.title}"):
                fetch_source(source)
    console.print("teacher and data are at hand, and verified against their digests")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end this process like Ctrl-C does, and put everything back afterwards."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        # SIGINT too: a shell starts background jobs with it ignored, and the servers would inherit that.
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_known(folder: RunFolder, project: Path, recipe_file: Path) -> None:
    """Show Airflow a recipe that lies outside of ``dags/recipes``, through a link in the run folder."""
    target = recipe_file.resolve()
    if target.parent == project / "dags" / "recipes":
        return
    link = folder.recipes / target.name
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _wait_for_dag(client: AirflowClient, dag_id: str, recipe_file: Path, servers: Servers) -> None:
    """Wait until Airflow has read the recipe as it is now.

    Raises:
        ConfigurationError: Airflow can't use the recipe.
        TryAgain: Airflow does not read it in time.
    """
    since = datetime.fromtimestamp(max(recipe_file.stat().st_mtime, servers.airflow.born), UTC)
    deadline = time.monotonic() + SECONDS_FOR_DAG
    while (parsed := client.parsed_at(dag_id)) is None or parsed < since:
        for error in client.import_errors():
            if recipe_file.name in error:
                raise ConfigurationError(error)
        if time.monotonic() > deadline:
            raise TryAgain(f"Airflow has not read {recipe_file} in {SECONDS_FOR_DAG:.0f} s; see .run/logs/airflow.log")
        time.sleep(0.5)


def _trigger(console: Console, client: AirflowClient, dag_id: str, overrides: Mapping[str, Any], *, fresh: bool) -> str:
    """Start a run and return its id.

    Raises:
        ConfigurationError: Airflow refuses a parameter.
    """
    for old in client.unfinished_runs(dag_id):
        if fresh:
            console.print(f"closing run {old}, which was interrupted; what it finished is reused")
            client.close_run(dag_id, old, "interrupted with its servers; closed by the next quickstart")
        else:
            console.print(f"run {old} is still going; this one waits for it")
    run_id = f"run-{utc_now():%Y%m%d-%H%M%S}"
    client.unpause(dag_id)
    client.trigger(dag_id, run_id, overrides)
    return run_id


def _order(recipe: Recipe) -> list[tuple[str, tuple[str, int]]]:
    order = [(task.task_id, airflow_place(task.task_id)) for task in plan(recipe)]
    promote = [task_id for task_id, _ in order].index("promote")
    return [*order[:promote], ("approve", ("approve", -1)), *order[promote:]]


def conclude(console: Console, end: RunEnd) -> ExitCode:
    """Print how a run ended; see `run_quickstart` for what is returned."""
    failed = next((row for row in end.rows if row.word == "failed"), None)
    if end.state != "success":
        where = failed.task_id if failed else "the run"
        record = end.records.get(where)
        message = record.message if record else "see its log in Airflow"
        console.print(f"\n[bold red]{where} failed:[/] {message}", soft_wrap=True)
        return ExitCode(record.exit_code) if record and record.exit_code else ExitCode.BUG
    console.print()
    done = {task: record for task, record in end.records.items() if record.state in ("succeeded", "reused")}
    return show_outcome({task: record.result for task, record in done.items() if record.result is not None})


def _show_places(
    console: Console, servers: Servers, folder: RunFolder, recipe: Recipe, run_id: str, end: RunEnd
) -> None:
    places = {
        "Airflow": f"{servers.airflow_url}/dags/{recipe.name}/runs/{run_id}  [dim]({USER} / {folder.password()})[/]",
        "MLflow": mlflow_workflow_url(servers.mlflow_url, recipe.name, workflow_run_id(recipe.name, run_id)),
    }
    decided = end.records.get("decide")
    if decided is not None and decided.result is not None:
        places["report"] = read_result(decided.result).outputs["report"].uri
    console.print()
    for name, place in places.items():
        console.print(f"{name:<8} {place}", soft_wrap=True)
