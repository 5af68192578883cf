"""Running one stage: reuse or work, results before records, tracking last.

The order makes a killed process harmless. Outputs are stored first, ``result.json`` after them, and only then is the
result shown to MLflow: whatever is missing after a crash is made again from what is there.
"""

import errno
import fcntl
import importlib
import logging
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from stillhouse.contract import (
    ConfigurationError,
    ResultRef,
    StageBug,
    StageRequest,
    StageResult,
    TryAgain,
    exit_code_of,
    pretty_json,
    sha256_of,
)
from stillhouse.stages.catalog import CATALOG, find_reusable, key_of, result_key
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.publishing import Publisher
from stillhouse.stages.ranks import accelerators, check_processes
from stillhouse.stages.records import Recorder
from stillhouse.store import open_store
from stillhouse.store.atomic import os_errors_explained

logger = logging.getLogger(__name__)


def run_stage(request: StageRequest, *, work: Path) -> ResultRef:
    """Do what ``request`` asks, or find that it was done.

    Args:
        request: The task.
        work: Folder on this machine for checkpoints and other files that outlive a killed process.

    Raises:
        StillhouseError: With the reason on one line; the task's record holds it too.
    """
    # OpenMP reads it when torch is loaded. Threads that wait for each other sleep instead of spinning: where others use
    # the cores too, such as Airflow's own processes, spinning makes a step of two threads several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    recorder = Recorder(open_store(request.store), request)
    try:
        check_processes(request)
        with _full_disk_is_temporary(), _memory_explained(request):
            return _run(request, recorder, work)
    except BaseException as error:
        _record_failure(recorder, error)
        raise


def _run(request: StageRequest, recorder: Recorder, work: Path) -> ResultRef:
    key = key_of(request)
    recorder.update(key=key, message="started")
    if (found := find_reusable(request, key)) is not None:
        recorder.update(state="reused", result=found, message=f"same content key {key[:12]}: result reused")
        return found
    workspace = work / request.stage / key
    with os_errors_explained(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_only_one(workspace))
        publisher = Publisher.open(request)
        stack.enter_context(publisher.system_metrics())
        try:
            result = _work(request, key, workspace, recorder, publisher)
        except BaseException:
            publisher.give_up()
            raise
        document = pretty_json(result)
        store = open_store(request.store)
        store.put(result_key(request.stage, key), document)
        reference = ResultRef(uri=store.uri(result_key(request.stage, key)), sha256=sha256_of(document))
        recorder.update(result=reference, message=result.summary)
    mlflow_run_id = publisher.publish(recorder.record, result)
    recorder.update(state="succeeded", mlflow_run_id=mlflow_run_id)
    shutil.rmtree(workspace, ignore_errors=True)
    return reference


def _work(request: StageRequest, key: str, workspace: Path, recorder: Recorder, publisher: Publisher) -> StageResult:
    spec = CATALOG[request.stage]
    started = _first_start(workspace)
    context = StageContext.of(
        request,
        key,
        workspace,
        mlflow_run_id=publisher.mlflow_run_id,
        report_progress=recorder.progress,
        report_point=publisher.live(),
    )
    outcome: StageOutcome = importlib.import_module(spec.module).run(context)
    finished = datetime.now(UTC)
    usage, seconds = resource.getrusage(resource.RUSAGE_SELF), (finished - started).total_seconds()
    return StageResult(
        stage=request.stage,
        key=key,
        parameters=request.parameters,
        inputs=request.inputs,
        outputs=context.outputs,
        metrics=outcome.metrics,
        summary=outcome.summary,
        started_at=started,
        finished_at=finished,
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_memory_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        device_seconds=seconds * accelerators(),
        code_version=spec.version(),
        image_digest=os.environ.get("STILLHOUSE_IMAGE_DIGEST"),
    )


def _first_start(workspace: Path) -> datetime:
    """Return when the first try of this task began, so that the time of killed tries is not forgotten."""
    stamp = workspace / "started"
    if not stamp.exists():
        stamp.write_text(datetime.now(UTC).isoformat())
    return datetime.fromisoformat(stamp.read_text())


@contextmanager
def _only_one(workspace: Path) -> Iterator[None]:
    """Hold the workspace against a second process with the same key, such as a retry beside a lost first try."""
    with (workspace.parent / f"{workspace.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgain(f"another process works on {workspace}; try again when it has ended") from None
        yield


@contextmanager
def _full_disk_is_temporary() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" at {error.filename}" if error.filename else ""
            raise TryAgain(f"no space left on the disk{where}; free some and run again") from error
        raise


@contextmanager
def _memory_explained(request: StageRequest) -> Iterator[None]:
    """Explain an allocation that was refused: another try would end the same."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch names its own for accelerators, and gives a plain RuntimeError for a CPU.
        refused = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if refused or "can't allocate memory" in str(error):
            where = f"resources.stages.{request.stage}.memory_gib"
            raise ConfigurationError(f"out of memory: raise {where}, or lower the batch size") from error
        raise


def _record_failure(recorder: Recorder, error: BaseException) -> None:
    code = exit_code_of(error)
    message = describe(error)
    try:
        recorder.update(state="failed", message=message, exit_code=int(code))
    except (TryAgain, OSError) as second:
        logger.warning("the failure could not be recorded: %s", second)


def describe(error: BaseException) -> str:
    """Return one line for people about ``error``. An unexpected one is named by type only: its text may hold data."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run again to go on from what is done"
    if exit_code_of(error) == StageBug.exit_code and not isinstance(error, StageBug):
        return f"unexpected {type(error).__name__}: a defect in Stillhouse; the log has the traceback"
    return " ".join(str(error).split())


def stop_on_sigterm() -> None:
    """Turn SIGTERM into an ordinary `TryAgain`, so that a stopped task records why it ended."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TryAgain("stopped by SIGTERM; run again to go on from the last checkpoint")

    signal.signal(signal.SIGTERM, stop)
