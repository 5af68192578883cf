"""Containers that nobody waits for any more: stopped when they ran for too long, removed when nobody read their end.

Airflow stops what it started, and removes what has ended. This is for what it lost: a worker that never came back, a
run that was deleted meanwhile. Only containers with labels of ours are touched.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from docker import APIClient

from stillhouse.orchestration.containers import PREFIX
from stillhouse.orchestration.docker_engine import SECONDS_TO_ANSWER, engine_errors, has_ended, inspect, remove, stop
from stillhouse.orchestration.hardened import DEADLINE
from stillhouse.orchestration.runtimes import DockerRuntime

UNREAD = timedelta(hours=1)
"""After which an end counts as one that nobody will read. Airflow's longest wait between two tries is 10 minutes."""


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """One container, and what became of it."""

    name: str
    run: str
    task: str
    action: Literal["stopped", "removed"]
    reason: str

    def __str__(self) -> str:
        return f"{self.action} {self.name} (task {self.task} of run {self.run}): {self.reason}"


def reap(runtime: DockerRuntime, *, now: datetime | None = None, unread: timedelta = UNREAD) -> Iterator[Reaped]:
    """Stop and remove what nobody waits for. Does each when the one before was taken.

    Args:
        runtime: Whose engine.
        now: The present by default.
        unread: How long an end may wait for its reader.

    Raises:
        TryAgain: The engine is away.
        ConfigurationError: It refuses.
    """
    now = now or datetime.now(UTC)
    with (
        engine_errors(runtime.url),
        closing(APIClient(base_url=runtime.url, version="auto", timeout=SECONDS_TO_ANSWER)) as engine,
    ):
        for listed in engine.containers(all=True, filters={"label": DEADLINE}):
            container = inspect(engine, listed["Id"])
            if (
                container is not None
                and (reaped := reap_container(engine, container, now=now, unread=unread)) is not None
            ):
                yield reaped


def reap_container(
    engine: APIClient, container: dict[str, Any], *, now: datetime, unread: timedelta = UNREAD
) -> Reaped | None:
    """Stop or remove one container of ours, as the engine described it, or leave it alone."""
    labels, state = container["Config"]["Labels"], container["State"]
    about = {
        "name": container["Name"].lstrip("/"),
        "run": labels.get(f"{PREFIX}.run", "unknown"),
        "task": labels.get(f"{PREFIX}.task", "unknown"),
    }
    if has_ended(container) and datetime.fromisoformat(state["FinishedAt"]) + unread < now:
        remove(engine, container["Id"])
        return Reaped(action="removed", reason=f"ended at {_minute(state['FinishedAt'])}", **about)
    if state["Status"] == "created" and datetime.fromisoformat(container["Created"]) + unread < now:
        remove(engine, container["Id"])
        return Reaped(action="removed", reason=f"never started since {_minute(container['Created'])}", **about)
    if state["Running"] and datetime.fromisoformat(labels[DEADLINE]) < now:
        stop(engine, container["Id"])
        return Reaped(action="stopped", reason=f"its deadline was {_minute(labels[DEADLINE])}", **about)
    return None


def _minute(moment: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
