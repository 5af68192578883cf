"""The record of each task of a run, as it changes."""

import logging
import time
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from stillhouse.contract import (
    IntegrityError,
    Progress,
    ResultRef,
    StageRequest,
    StageResult,
    TaskRecord,
    TryAgain,
    pretty_json,
    sha256_of,
)
from stillhouse.store import ObjectStore, locate, verify_artifact

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_PROGRESS = 1.0
"""Progress is for eyes: more often would only load the store."""


def record_key(run_id: str, task_id: str) -> str:
    """Return the object key of a task's record."""
    return f"runs/{run_id}/tasks/{task_id}.json"


def read_records(store: ObjectStore, run_id: str) -> dict[str, TaskRecord]:
    """Return the records of a run by task id; a task that has not begun has none."""
    records = (TaskRecord.model_validate_json(store.get(key)) for key in store.keys(f"runs/{run_id}/tasks/"))
    return {record.task_id: record for record in records}


def read_result(reference: ResultRef) -> StageResult:
    """Return the result that an earlier task named.

    Raises:
        IntegrityError: It is gone, or its bytes are not those that the task named.
        TryAgain: The store is away.
    """
    try:
        store, key = locate(reference.uri)
        document = store.get(key)
    except FileNotFoundError:
        raise IntegrityError(f"{reference.uri} is gone; clear the task that made it") from None
    if sha256_of(document) != reference.sha256:
        raise IntegrityError(f"{reference.uri} differs from the digest that its task named; clear that task")
    try:
        return StageResult.model_validate_json(document)
    except ValidationError:
        raise IntegrityError(f"{reference.uri} is not a stage result; clear the task that made it") from None


def verify_result(reference: ResultRef) -> StageResult:
    """Return the result of a task that says it is done, once it is known to be: cheap, nothing is downloaded.

    Raises:
        IntegrityError: It is gone, is no stage result, or an output is missing or damaged.
        TryAgain: The store is away.
    """
    result = read_result(reference)
    damaged = [name for name, artifact in result.outputs.items() if not verify_artifact(artifact)]
    if damaged:
        raise IntegrityError(f"output {damaged[0]} of {reference.uri} is missing or damaged; clear the task")
    return result


class Recorder:
    """Keeps the record of one task up to date in the store."""

    def __init__(self, store: ObjectStore, request: StageRequest) -> None:
        self._store = store
        self._key = record_key(request.run_id, request.task_id)
        self._progress_at = 0.0
        self.record = TaskRecord(
            run_id=request.run_id,
            task_id=request.task_id,
            stage=request.stage,
            state="running",
            request_sha256=request.sha256,
            updated_at=datetime.now(UTC),
        )

    def update(self, **changes: Any) -> None:
        """Change fields of the record and write it.

        Raises:
            TryAgain: The store is away or full.
        """
        self.record = self.record.replace(**changes, updated_at=datetime.now(UTC))
        self._store.put(self._key, pretty_json(self.record))

    def progress(self, progress: Progress) -> None:
        """Write how far the task is, unless it was written a moment ago. Never stops the work that it describes."""
        now = time.monotonic()
        if now - self._progress_at < SECONDS_BETWEEN_PROGRESS and progress.done < progress.total:
            return
        self._progress_at = now
        try:
            self.update(progress=progress)
        except TryAgain as error:
            logger.warning("progress not recorded: %s", error)
