"""Every task of a workflow killed at some moment and started again, by any runtime, and a table of what came of it.

    python tests/crash_matrix.py --out TABLE.md

A runtime is three calls: see `Runtime` and `Handle`. Moments are the writes of a task to its store, which a proxy
counts: a progress report, an output, the result, the record of the end.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from buckets import s3_settings
from proxies import NOTHING, Proxy, Request, fault_proxy
from servers import create_bucket, mlflow_server, s3_server
from tiny_bucket import digests_of, write_workflow_in_bucket

from stillhouse.contract import ResultRef, StageRequest, pretty_json
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.inprocess import run_workflow
from stillhouse.orchestration.plan import PlannedTask, plan
from stillhouse.orchestration.requests import build_request
from stillhouse.recipe import Recipe, load_recipe
from stillhouse.stages.records import read_records
from stillhouse.store import open_store

TAKES_MINUTES = 600


class Handle(Protocol):
    """A task that was started."""

    def kill(self) -> None:
        """End it at once, without a goodbye. That it has ended is no error."""

    def wait(self) -> int:
        """Return its exit code when it has ended."""


class Runtime(Protocol):
    """Whatever runs tasks."""

    name: str

    def start(self, request: StageRequest, uri: str, environment: Mapping[str, str]) -> Handle:
        """Start the task of ``request``, which lies at ``uri``, with settings for its servers."""


@dataclass(frozen=True, kw_only=True)
class LocalHandle:
    """A process and its children."""

    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait(self) -> int:
        return self.process.wait(timeout=TAKES_MINUTES)


@dataclass(frozen=True, kw_only=True)
class Local:
    """Processes on this machine."""

    work: Path
    log: Path
    name: str = "local"

    def start(self, request: StageRequest, uri: str, environment: Mapping[str, str]) -> LocalHandle:
        command = [sys.executable, "-m", "stillhouse.cli", "stage", request.stage, "--request", uri]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--work", str(self.work)],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return LocalHandle(process=process)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one task."""

    task: str
    runtime: str
    moment: str
    exits: tuple[int, ...]
    """Exit codes of all tries; negative for a signal."""
    results: int
    """How often its work was done: results that were written for it."""
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A workflow on a store behind a proxy, whose tasks a runtime runs."""

    recipe: Recipe
    deployment: Deployment
    proxy: Proxy
    environment: Mapping[str, str]
    """Settings with which a task reaches the servers through the proxy."""
    results: dict[str, ResultRef] = field(default_factory=dict)

    def run(self, runtime: Runtime, moments: Iterator[int], run_id: str = "crash") -> Iterator[Row]:
        """Run every task, killing each try of it but the last after as many writes as ``moments`` says."""
        for task in plan(self.recipe):
            yield self._killed_and_run_again(task, runtime, next(moments), run_id)

    def _killed_and_run_again(self, task: PlannedTask, runtime: Runtime, writes: int, run_id: str) -> Row:
        request = build_request(
            task, recipe=self.recipe, run_id=run_id, results=self.results, deployment=self.deployment
        )
        store = open_store(request.store)
        key = f"runs/{run_id}/requests/{task.task_id}.json"
        store.put(key, pretty_json(request))
        before = len(self.proxy.requests)
        started: list[Handle] = []
        self.proxy.script = iter([*[NOTHING] * (writes - 1), {"after": lambda: started[0].kill()}])
        started.append(runtime.start(request, store.uri(key), self.environment))
        exits = [started[0].wait()]
        self.proxy.script = iter(())
        if exits[0] != 0:
            exits.append(runtime.start(request, store.uri(key), self.environment).wait())
        record = read_records(store, run_id)[task.task_id]
        if exits[-1] == 0 and record.result is not None:
            self.results[task.task_id] = record.result
        done = sum(map(is_result, self.proxy.requests[before:]))
        killed = f"after write {writes}" if exits[0] != 0 else f"none: it wrote less than {writes} times"
        state = record.state if exits[-1] == 0 else f"failed: {record.message}"
        return Row(task=task.task_id, runtime=runtime.name, moment=killed, exits=(*exits,), results=done, outcome=state)


def is_write(request: Request) -> bool:
    return request.method == "PUT"


def is_result(request: Request) -> bool:
    return is_write(request) and request.path.partition("?")[0].endswith("/result.json")


def markdown(rows: Iterable[Row]) -> str:
    """Return the table for the documentation."""
    lines = [
        "| task | runtime | killed | tries | exit codes | results written | outcome |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        codes = ", ".join(map(str, row.exits))
        cells = (f"`{row.task}`", row.runtime, row.moment, len(row.exits), codes, row.results, row.outcome)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


@contextmanager
def tiny_matrix(folder: Path, patch: Callable[[str, str], None]) -> Iterator[tuple[Matrix, dict[str, str]]]:
    """Start servers, run the tiny workflow undisturbed, and yield a matrix of it with the digests that it must give."""
    with ExitStack() as stack:
        for name in ("s3", "mlflow"):
            (folder / name).mkdir()
        s3 = stack.enter_context(s3_server(folder / "s3"))
        mlflow = stack.enter_context(mlflow_server(folder / "mlflow"))
        create_bucket(s3.url, "store")
        for name, value in s3_settings(s3.url, folder).items():
            patch(name, value)
        recipe = load_recipe(write_workflow_in_bucket(folder / "tiny", "s3://store/sources"))
        quiet = Deployment(store="s3://store/undisturbed", work=folder / "undisturbed")
        expected = digests_of(run_workflow(recipe, run_id="undisturbed", deployment=quiet))
        proxy = stack.enter_context(fault_proxy(s3.url, harms=is_write))
        deployment = Deployment(store="s3://store/crashed", work=folder / "work", tracking_uri=mlflow.url)
        yield (
            Matrix(recipe=recipe, deployment=deployment, proxy=proxy, environment=s3_settings(proxy.url, folder)),
            expected,
        )


def random_moments(seed: int) -> Iterator[int]:
    """Yield random numbers of writes after which a task is killed."""
    rng = random.Random(seed)
    while True:
        yield rng.randint(1, 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file for the table, in Markdown")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tiny_matrix(folder, os.environ.__setitem__) as (matrix, expected):
            runtime = Local(work=matrix.deployment.work, log=folder / "log")
            rows = list(matrix.run(runtime, random_moments(arguments.seed)))
            same = digests_of(matrix.results) == expected
    verdict = "The digests equal those of a run that nothing disturbed." if same else "**The digests differ.**"
    arguments.out.write_text(f"{markdown(rows)}\n{verdict}\n")


if __name__ == "__main__":
    main()
