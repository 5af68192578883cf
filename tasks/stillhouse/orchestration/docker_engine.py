"""What a Docker engine answers: errors of ours for its errors, the output of a container, and how it ended."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from docker import APIClient
from docker.errors import APIError, DockerException, NotFound
from docker.types.daemon import CancellableStream
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from stillhouse.contract import ConfigurationError, StillhouseError, TryAgain
from stillhouse.orchestration.containers import Ended

SECONDS_TO_ANSWER = 20
"""For a request of which the engine is not asked to wait for anything."""

SECONDS_TO_STOP = 20
"""From SIGTERM to SIGKILL. Airflow itself waits 60 s for a task that it stops."""

WATCH_SECONDS = 5.0
"""How often the engine is asked whether a container still runs whose output is being read."""

_STAYS_WRONG = ("device driver", "executable file not found", "no such file or directory", "not found")
"""In what the engine says when a container can't start, although it takes the blame: another try would end the same."""


@contextmanager
def engine_errors(url: str, *, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Raise errors of ours for those of the engine and its client.

    Args:
        url: Where the engine listens.
        secrets: Values that no message may hold.

    Raises:
        TryAgain: The engine is away, or in trouble.
        ConfigurationError: It refuses what it was asked for.
    """
    try:
        yield
    except APIError as error:
        raise _refusal(error, url, secrets) from None
    except (DockerException, RequestException, HTTPError):
        raise away(url) from None


def away(url: str) -> TryAgain:
    """Return the error for an engine that can't be reached."""
    return TryAgain(f"the Docker engine at {url} can't be reached: is it running, and may this user use it?")


def _refusal(error: APIError, url: str, secrets: Iterable[str]) -> StillhouseError:
    said = " ".join(str(error.explanation or "").split())[:500]
    for secret in secrets:
        said = said.replace(secret, "***")
    message = f"the Docker engine at {url} refuses ({error.status_code}): {said}"
    own_trouble = error.status_code is None or error.status_code >= 500
    stays = any(reason in said.lower() for reason in _STAYS_WRONG)
    return TryAgain(message) if own_trouble and not stays else ConfigurationError(message)


def inspect(engine: APIClient, container: str) -> dict[str, Any] | None:
    """Return what the engine knows about ``container``, an id or a name; None if there is none.

    Raises:
        APIError: As of the client, here and below.
    """
    try:
        found: dict[str, Any] = engine.inspect_container(container)
    except NotFound:
        return None
    return found


def has_ended(container: dict[str, Any]) -> bool:
    """Whether an inspected container ran and does so no more."""
    return container["State"]["Status"] in ("exited", "dead")


def end_of(container: dict[str, Any] | None, *, last_line: str = "") -> Ended:
    """Return how an inspected container ended. One that is gone was killed, as far as anybody can know."""
    if container is None:
        return Ended(exit_code=137, last_line=last_line)
    state = container["State"]
    # A process that the container could do without may have been killed for its memory, too.
    return Ended(
        exit_code=state["ExitCode"],
        out_of_memory=bool(state["OOMKilled"]) and state["ExitCode"] != 0,
        last_line=last_line,
    )


def remove(engine: APIClient, container: str) -> None:
    """Remove a container, also one that runs, and its volumes without a name. It is gone when this returns."""
    try:
        engine.remove_container(container, v=True, force=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:
            raise
        # Somebody else removes it already.
        wait_until_gone(engine, container)


def stop(engine: APIClient, container: str) -> None:
    """Ask a container to stop, and kill it if it does not. It runs no more when this returns."""
    try:
        engine.stop(container, timeout=SECONDS_TO_STOP)
    except NotFound:
        return


def wait_until_gone(engine: APIClient, container: str) -> None:
    """Wait for a removal that somebody else has begun."""
    try:
        engine.wait(container, condition="removed", timeout=SECONDS_TO_ANSWER)
    except NotFound:
        return


class Output:
    """The output of a container, standard output and errors together, as lines: each once, however often it is asked.

    Args:
        engine: A client of the engine.
        container: Its id.
        tail: Lines to begin with of what it wrote before; None for all.
    """

    def __init__(self, engine: APIClient, container: str, *, tail: int | None = None) -> None:
        self._engine = engine
        self.container = container
        self._tail: int | str = "all" if tail is None else tail
        self._seen = ""
        self._frames_read = 0
        self.last_line = ""
        """That was not empty."""

    def follow(self) -> Iterator[str]:
        """Yield lines until the container ends or the connection does. Call again to go on after the latter."""
        # Parts of a long line share their moment; parts of the other stream's lines may come between them.
        unfinished: dict[str, bytes] = {}
        seen = self._seen
        for stamp, text in self._frames():
            if stamp <= seen:
                continue
            self._seen = max(self._seen, stamp)
            unfinished[stamp] = unfinished.get(stamp, b"") + text
            if text.endswith(b"\n"):
                yield from self._line(unfinished.pop(stamp))
        for rest in unfinished.values():
            yield from self._line(rest)

    def _frames(self) -> Iterator[tuple[str, bytes]]:
        """Yield when something was written, and what: a line, or a part of a long one."""
        since = int(datetime.fromisoformat(self._seen).timestamp()) if self._seen else None
        stream = self._engine.logs(
            self.container, stream=True, follow=True, timestamps=True, tail=self._tail, since=since
        )
        self._tail = "all"
        with self._watched(stream):
            for frame in stream:
                self._frames_read += 1
                stamp, _, text = frame.partition(b" ")
                yield stamp.decode(), text

    @contextmanager
    def _watched(self, stream: CancellableStream) -> Iterator[None]:
        """Close ``stream`` when the container runs no more and nothing comes.

        The engine keeps it open for ever if the container was removed at the wrong moment, and so does a proxy that
        lost the engine.
        """
        finished = threading.Event()

        def watch() -> None:
            read, runs = -1, True
            while not finished.wait(WATCH_SECONDS):
                if not runs and read == self._frames_read:
                    stream.close()
                    return
                read = self._frames_read
                with suppress(DockerException, RequestException, HTTPError):
                    container = inspect(self._engine, self.container)
                    runs = container is not None and not has_ended(container)

        threading.Thread(target=watch, name="container-watcher", daemon=True).start()
        try:
            yield
        finally:
            finished.set()

    def _line(self, raw: bytes) -> Iterator[str]:
        line = raw.decode("utf-8", errors="replace").rstrip()
        if line:
            self.last_line = line
            yield line
