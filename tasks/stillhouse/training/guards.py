"""What stops a training that has gone wrong, before it costs more."""

import math
from collections.abc import Mapping
from typing import Any

from stillhouse.contract import DataRejected

START_STEPS = 5
"""Steps whose average counts as a term's start."""
SMOOTHING = 0.9
"""Share of the past in a moving average."""


class LossGuard:
    """Refuses a term that is not finite, or whose moving average has grown too far above its start.

    Args:
        factor: How far: relative to the average of the first steps, or to 1 where that is smaller.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._starts: dict[str, float] = {}
        self._averages: dict[str, float] = {}
        self._count = 0

    def check(self, step: int, terms: Mapping[str, float]) -> None:
        """Look at the terms of a step.

        Raises:
            DataRejected: A term, which the message names, is out of bounds.
        """
        for name, value in terms.items():
            # A NaN that goes unseen for one step is in every weight after it.
            if not math.isfinite(value):
                raise DataRejected(
                    f"the loss is not finite at step {step} (term {name}); check the data and lower "
                    "training.learning_rate"
                )
        self._count += 1
        for name, value in terms.items():
            past = self._averages.get(name, value)
            self._averages[name] = SMOOTHING * past + (1 - SMOOTHING) * value
            if self._count <= START_STEPS:
                self._starts[name] = self._starts.get(name, 0.0) + value / START_STEPS
            elif self._averages[name] > self._factor * max(self._starts.get(name, value), 1.0):
                raise DataRejected(
                    f"the loss explodes at step {step} (term {name}: {self._averages[name]:.3g} after "
                    f"{self._starts[name]:.3g} at the start); lower training.learning_rate"
                )

    def state(self) -> dict[str, Any]:
        """Return plain data from which `restore` goes on."""
        return {"starts": self._starts, "averages": self._averages, "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._starts, self._averages = dict(state["starts"]), dict(state["averages"])
        self._count = state["count"]
