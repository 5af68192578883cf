"""The curves of a training, averaged as they come."""

from collections.abc import Mapping
from typing import Any

from stillhouse.contract import HistoryPoint, TrainingHistory, ValidationPoint

MAX_POINTS = 200
"""Points of a history, at most: enough for a plot, little to store."""
MEASUREMENTS = 10
"""Steps, about, at which the gradient norm of each term is measured: a backward pass for each term."""


class HistoryRecorder:
    """Averages loss and terms between points. Its state is part of a checkpoint, so a resumed history has no seam."""

    def __init__(self, total_steps: int, *, measurements: int = MEASUREMENTS) -> None:
        """Start with no points.

        Args:
            total_steps: Of the training.
            measurements: Of the terms' gradient norms; 0 measures none.
        """
        self.total_steps = total_steps
        self._measures_every = -(-total_steps // measurements) if measurements else total_steps + 1
        self._norms: dict[str, float] = {}
        self._interval = -(-total_steps // MAX_POINTS)
        self._points: list[HistoryPoint] = []
        self._validation: list[ValidationPoint] = []
        self._sums: dict[str, float] = {}
        self._count = 0

    def is_due(self, step: int) -> bool:
        """Whether a point follows ``step``, which is counted from 1."""
        return step % self._interval == 0 or step == self.total_steps

    def measures_gradients(self, step: int) -> bool:
        """Whether the terms' gradients are measured in ``step``, which is counted from 0."""
        return step % self._measures_every == 0 and self._measures_every <= self.total_steps

    def add_gradient_norms(self, norms: Mapping[str, float]) -> None:
        """Take the terms' gradient norms into the next point."""
        self._norms = dict(norms)

    def add(self, loss: float, terms: Mapping[str, float]) -> None:
        """Count one step in."""
        for name, value in {"": loss, **terms}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def close_point(
        self, *, step: int, epoch: float, seen: int, learning_rate: float, gradient_norm: float | None
    ) -> HistoryPoint:
        """Add a point with the averages since the one before, and return it."""
        means = {name: value / self._count for name, value in self._sums.items()}
        point = HistoryPoint(
            step=step,
            epoch=epoch,
            seen=seen,
            learning_rate=learning_rate,
            loss=means.pop(""),
            terms=means,
            gradient_norm=gradient_norm,
            term_gradient_norms=self._norms,
        )
        self._points.append(point)
        self._sums, self._count, self._norms = {}, 0, {}
        return point

    @property
    def validated_step(self) -> int:
        """Step of the last measurement on held-out data; -1 if there was none."""
        return self._validation[-1].step if self._validation else -1

    def add_validation(self, point: ValidationPoint) -> None:
        """Add a measurement on held-out data."""
        self._validation.append(point)

    def history(self) -> TrainingHistory:
        """Return all points so far."""
        return TrainingHistory(
            total_steps=self.total_steps, points=tuple(self._points), validation=tuple(self._validation)
        )

    def state(self) -> dict[str, Any]:
        """Return plain data from which `restore` goes on."""
        points = [point.model_dump(mode="json") for point in self._points]
        validation = [point.model_dump(mode="json") for point in self._validation]
        return {
            "points": points,
            "validation": validation,
            "sums": self._sums,
            "count": self._count,
            "norms": self._norms,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._points = [HistoryPoint.model_validate(point) for point in state["points"]]
        self._validation = [ValidationPoint.model_validate(point) for point in state["validation"]]
        self._sums = dict(state["sums"])
        self._count = state["count"]
        self._norms = dict(state["norms"])
