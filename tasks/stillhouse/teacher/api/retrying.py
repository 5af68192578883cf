"""Asking a server again after what passes: too many requests, its own errors, broken connections, bad replies."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx2
import openai

from stillhouse.contract import ConfigurationError, IntegrityError, NotPermitted, TryAgain
from stillhouse.recipe import ApiConfig
from stillhouse.teacher.api.replies import BadReply, Misfit

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_WAIT_SECONDS = 300.0
"""A server that asks for more is away; Airflow waits better than a process."""


class Declined(Exception):
    """The server's filter refused this prompt."""


class Stopped(Exception):
    """Another thread failed or the task was stopped, so this request is no longer wanted."""


class Retrying:
    """Tries calls of one server until they succeed or the recipe's patience ends. Safe for threads.

    Pauses are drawn evenly between 0 and a bound that doubles ("full jitter", Brooker 2015), and never end before the
    time that the server named, which holds for all threads.

    Args:
        config: The server.
        stop: Set when nothing is wanted any more.
    """

    def __init__(self, config: ApiConfig, stop: threading.Event) -> None:
        self._config, self._stop = config, stop
        self._lock = threading.Lock()
        self._not_before = 0.0
        self.failures: Counter[str] = Counter()
        """How often what went wrong."""

    def call(self, do: Callable[[], T]) -> T:
        """Return what ``do`` returns.

        Raises:
            Declined: The server's filter refused the prompt.
            Stopped: Nothing is wanted any more.
            NotPermitted: The server wants another key, or money.
            ConfigurationError: The server knows no such model or parameter.
            IntegrityError: Every reply belonged to something else.
            TryAgain: The patience ended.
        """
        causes: Counter[str] = Counter()
        misfits = 0
        for attempt in range(self._config.attempts):
            self._pause_until(self._not_before)
            try:
                return do()
            except (openai.OpenAIError, httpx2.HTTPError, BadReply) as error:
                cause, wait = self._explain(error)
                misfits += isinstance(error, Misfit)
            causes[cause] += 1
            with self._lock:
                self.failures[cause] += 1
                if wait is not None:
                    self._not_before = max(self._not_before, time.monotonic() + wait)
            if attempt + 1 < self._config.attempts:
                bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt)
                self._pause_until(max(self._not_before, time.monotonic()) + random.uniform(0, bound))
        what = ", ".join(f"{count} x {cause}" for cause, count in causes.most_common())
        if misfits == self._config.attempts:
            raise IntegrityError(f"{self._config.host}: {what}; look for a proxy or cache that mixes replies")
        raise TryAgain(f"{self._config.host} did not answer a request: {what}; run again when it does")

    def _pause_until(self, moment: float) -> None:
        if self._stop.wait(max(0.0, moment - time.monotonic())):
            raise Stopped

    def _explain(self, error: Exception) -> tuple[str, float | None]:
        """Return the name of a failure that passes, and the seconds that the server wants to be left alone."""
        if isinstance(error, BadReply):
            return str(error), None
        if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
            return "no answer in time", None
        if isinstance(error, openai.APIStatusError):
            return self._explain_status(error)
        return "a broken connection", None

    def _explain_status(self, error: openai.APIStatusError) -> tuple[str, float | None]:
        status = error.status_code
        if status != 429 and status not in (408, 409) and status < 500:
            raise self._lasting(error) from None
        if status == 429 and error.code == "insufficient_quota":
            raise NotPermitted(f"{self._config.host} says that the account has no credit left; top it up") from None
        wait = _retry_after(error.response.headers)
        if wait is not None and wait > LONGEST_WAIT_SECONDS:
            raise TryAgain(f"{self._config.host} wants to be left alone for {wait:.0f} s; run again then") from None
        return f"status {status}", wait

    def _lasting(self, error: openai.APIStatusError) -> Exception:
        status, host = error.status_code, self._config.host
        # The body's message may repeat the prompt, so only its code and the name of the parameter are shown.
        where = ", ".join(name for name in (_word(error.code), _word(error.param)) if name)
        if status in (401, 403):
            key = f"the key in {self._config.key}" if self._config.key else "that there is no key"
            return NotPermitted(f"{host} refuses {key} (status {status}); set teacher.api.key to one that it takes")
        if error.code == "content_filter":
            return Declined()
        if status == 404:
            return ConfigurationError(
                f"{host} knows no model '{self._config.model}' at this address (status 404); check teacher.api.model "
                "and base_url"
            )
        if 300 <= status < 400:
            return ConfigurationError(
                f"{host} redirects to another address, where neither prompts nor keys are sent; name that one in "
                "teacher.api.base_url"
            )
        return ConfigurationError(f"{host} refuses a request (status {status}{where and ': ' + where}); see its manual")


def _retry_after(headers: Any) -> float | None:
    """Return the seconds in ``Retry-After``: a number, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _word(value: object) -> str:
    """Return a code of the server's, if it is nothing but a short word."""
    return value if isinstance(value, str) and len(value) <= 60 and value.replace("_", "").isalnum() else ""
