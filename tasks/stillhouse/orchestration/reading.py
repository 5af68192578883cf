"""Finding a run in the store again, for people who read its outcome afterwards."""

from stillhouse.contract import Artifact, ConfigurationError, DataRejected, ResultRef, TaskRecord, TryAgain
from stillhouse.stages.records import read_records, read_result
from stillhouse.store import ObjectStore

LATEST = "latest"
"""Stands for the run that began last."""

NEEDED = ("evaluate", "decide")
"""Tasks without whose results there is nothing to read."""

RUNS = "runs/"


def find_run(store: ObjectStore, name: str) -> str:
    """Return the id of the run that ``name`` means.

    Args:
        store: Where runs are recorded.
        name: A run's id, the beginning of only one, or ``latest``.

    Raises:
        ConfigurationError: There is no such run, or more than one.
    """
    if name == LATEST:
        return _latest(store)
    found = _runs(store, name)
    if name in found:
        return name
    if not found:
        known = ", ".join(list_runs(store)[-3:]) or "none"
        raise ConfigurationError(f"no run '{name}' in {store.root}; the last by name: {known}")
    if len(found) > 1:
        some = ", ".join(list(found)[:3])
        raise ConfigurationError(f"'{name}' begins {len(found)} runs; write more of one, such as {some}")
    return next(iter(found))


def read_run(store: ObjectStore, run_id: str) -> dict[str, ResultRef]:
    """Return the results of a run that has come to a verdict, by task id.

    Raises:
        DataRejected: One of its tasks failed before there was a verdict.
        TryAgain: It has not come that far.
    """
    results = read_results(store, run_id)
    if all(task in results for task in NEEDED):
        return results
    records = read_records(store, run_id)
    failed = next((record for record in records.values() if record.state == "failed"), None)
    if failed:
        raise DataRejected(f"run {run_id} failed in {failed.task_id}, so there is no verdict: {failed.message}")
    running = [task_id for task_id, record in records.items() if record.state == "running"]
    at_work = f"{', '.join(running)} at work" if running else f"{len(results)} tasks done"
    raise TryAgain(f"run {run_id} has no verdict yet ({at_work}); ask again when 'decide' is done")


def read_results(store: ObjectStore, run_id: str) -> dict[str, ResultRef]:
    """Return the results that a run has so far, by task id."""
    records = read_records(store, run_id)
    return {task_id: record.result for task_id, record in records.items() if record.result is not None}


def list_runs(store: ObjectStore) -> list[str]:
    """Return the ids of all runs, sorted."""
    return list(_runs(store))


def report_page(results: dict[str, ResultRef]) -> Artifact:
    """Return the report's page among the results of a run.

    Raises:
        IntegrityError: The result of ``decide`` is gone or damaged.
        TryAgain: The store is away.
    """
    return read_result(results["decide"]).outputs["report"]


def _runs(store: ObjectStore, beginning: str = "") -> dict[str, str]:
    """Return the first of each run's records by run id, sorted."""
    keys: dict[str, str] = {}
    for key in store.keys(f"{RUNS}{beginning}"):
        run_id, _, rest = key.removeprefix(RUNS).partition("/")
        if rest.startswith("tasks/"):
            keys.setdefault(run_id, key)
    return keys


def _latest(store: ObjectStore) -> str:
    """Return the run that began last, judged by one record of each: there may be many runs, each with many tasks."""
    runs = _runs(store)
    if not runs:
        raise ConfigurationError(f"no run in {store.root}; start one with: stillhouse run RECIPE")

    def began(run_id: str) -> float:
        key = f"{RUNS}{run_id}/tasks/validate.json"
        document = store.get(key if store.exists(key) else runs[run_id])
        return TaskRecord.model_validate_json(document).updated_at.timestamp()

    return max(runs, key=began)
