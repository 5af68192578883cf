"""Curves that are drawn while a training runs, without ever holding it up."""

import logging
import queue
import threading
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.entities import Metric

from stillhouse.contract import HistoryPoint, ValidationPoint

logger = logging.getLogger(__name__)

_CLOSING_SECONDS = 60.0
_WAITING = 1000
"""Points kept while the server is slow; more are dropped, since publishing draws the whole curve at the end."""


def curve_metrics(point: HistoryPoint, start_ms: int) -> list[Metric]:
    """Return the metrics of one point of a training.

    Args:
        point: The point.
        start_ms: Start of the MLflow run, milliseconds since 1970. It fixes the timestamps, so that drawing a point
            again, after a restart or at the end, adds nothing.
    """
    values = {"loss": point.loss, "learning_rate": point.learning_rate, **point.terms}
    values |= {f"gradient_norm/{term}": norm for term, norm in point.term_gradient_norms.items()}
    if point.gradient_norm is not None:
        values["gradient_norm"] = point.gradient_norm
    return [Metric(f"train/{name}", value, start_ms + point.step, point.step) for name, value in values.items()]


def held_out_metrics(point: ValidationPoint, start_ms: int) -> list[Metric]:
    """Return the metrics of one measurement on held-out data: the loss, and the tokens seen until then.

    Args:
        point: The measurement.
        start_ms: See `curve_metrics`.
    """
    values = {"loss": point.loss, "tokens_seen": float(point.tokens)}
    return [Metric(f"held_out/{name}", value, start_ms + point.step, point.step) for name, value in values.items()]


class LiveCurve:
    """Sends points in the background. When the server is away it says so once and drops them.

    Args:
        client: Of the MLflow server.
        mlflow_run_id: The task's run.
        start_ms: See `curve_metrics`.
    """

    def __init__(self, client: MlflowClient, mlflow_run_id: str, start_ms: int) -> None:
        self._client = client
        self._run_id = mlflow_run_id
        self._start_ms = start_ms
        self._warned = False
        self._queue: queue.Queue[HistoryPoint | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._send_all, name="live-curve", daemon=True)
        self._thread.start()

    def __call__(self, point: HistoryPoint) -> None:
        """Take a point; returns at once."""
        try:
            self._queue.put_nowait(point)
        except queue.Full:
            self._warn("is too slow")

    def close(self) -> None:
        """Drop what waits, and return when the point on its way has arrived: nothing is drawn after this."""
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join(_CLOSING_SECONDS)

    def _send_all(self) -> None:
        while (point := self._queue.get()) is not None:
            try:
                self._client.log_batch(self._run_id, metrics=curve_metrics(point, self._start_ms))
            except Exception as error:  # whatever it is, a training is worth more than its live curve
                self._warn(f"does not take points ({type(error).__name__})")

    def _warn(self, what: str) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        self._warned = True
        logger.log(level, "MLflow %s: the live curve has gaps until the task publishes its result", what)
