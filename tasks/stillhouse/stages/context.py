"""What a stage is given to do its work: verified inputs, a place for outputs, a voice."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from stillhouse.contract import (
    Artifact,
    ConfigurationError,
    HistoryPoint,
    Progress,
    StageRequest,
)
from stillhouse.recipe import Recipe
from stillhouse.store import ObjectStore, fetch_artifact, open_store, save_bytes, save_file, save_tree


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """What a stage has to say besides its outputs."""

    summary: str
    """One line for people."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures by name: letters, digits, ``_ - . /`` and spaces."""


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """One task's view of the world."""

    request: StageRequest
    recipe: Recipe
    store: ObjectStore
    prefix: str
    """Key prefix below which the outputs go."""
    workspace: Path
    """A folder of this task's own. It survives a killed process, so checkpoints go here."""
    mlflow_run_id: str | None
    """The task's run in MLflow, if there is a server."""
    report_progress: Callable[[Progress], None]
    report_point: Callable[[HistoryPoint], None]
    leads: bool = True
    """False in all but the first of several processes that train together: only the first one saves outputs."""
    outputs: dict[str, Artifact] = field(default_factory=dict)
    """Filled by the ``save_*`` methods."""

    @classmethod
    def of(cls, request: StageRequest, key: str, workspace: Path, **how: Any) -> Self:
        """Return the view of the task that ``request`` asks for.

        Args:
            request: What is asked for.
            key: Its content key, below which the outputs go.
            workspace: See the field.
            **how: The other fields: who follows the work, and who leads it.
        """
        return cls(
            request=request,
            recipe=request.parsed_recipe(),
            store=open_store(request.store),
            prefix=f"stages/{request.stage}/{key}",
            workspace=workspace,
            **how,
        )

    @property
    def cpus(self) -> int:
        """Threads that this task may use."""
        return self.recipe.resources.of(self.request.stage).cpus

    def input(self, name: str) -> Path:
        """Return a local path to the verified input ``name``.

        Raises:
            ConfigurationError: The request has no such input.
            IntegrityError: Its bytes differ from their digest.
        """
        if name not in self.request.inputs:
            raise ConfigurationError(f"stage {self.request.stage} needs input '{name}', which its request lacks")
        return fetch_artifact(self.request.inputs[name], self.workspace / "inputs")

    def inputs(self, pattern: str) -> Iterator[tuple[str, Path]]:
        """Yield name and local path of every input whose whole name matches ``pattern``, in the order of names."""
        for name in sorted(self.request.inputs):
            if re.fullmatch(pattern, name):
                yield name, self.input(name)

    def save_file(self, name: str, path: Path) -> Artifact:
        """Store the file at ``path`` as output ``name``; the suffix is kept."""
        return self._keep(name, save_file(self.store, f"{self.prefix}/{name}{path.suffix}", path))

    def save_bytes(self, name: str, data: bytes, suffix: str) -> Artifact:
        """Store ``data`` as output ``name`` with a file suffix such as ``.json``."""
        return self._keep(name, save_bytes(self.store, f"{self.prefix}/{name}{suffix}", data))

    def save_tree(self, name: str, folder: Path) -> Artifact:
        """Store the files of ``folder`` as output ``name``."""
        return self._keep(name, save_tree(self.store, f"{self.prefix}/{name}", folder))

    def progress(self, unit: str, *, total: float) -> Callable[[float], None]:
        """Return a function that reports how many ``unit`` are done, with the rate so far and the time left."""
        started = time.monotonic()

        def report(done: float) -> None:
            elapsed = time.monotonic() - started
            rate = done / elapsed if elapsed > 0 and done else None
            left = (total - done) / rate if rate else None
            self.report_progress(
                Progress(done=done, total=total, unit=unit, rate=rate, rate_unit=unit, seconds_left=left)
            )

        return report

    def _keep(self, name: str, artifact: Artifact) -> Artifact:
        self.outputs[name] = artifact
        return artifact
