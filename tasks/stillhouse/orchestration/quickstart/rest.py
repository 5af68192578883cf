"""The part of Airflow's REST API that a quickstart needs."""

import json
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import httpx

from stillhouse.contract import ConfigurationError, Conflict, NotPermitted, StillhouseError, TryAgain
from stillhouse.recipe import Config

SECONDS_FOR_ANSWER = 30.0
UNFINISHED = ("queued", "running")

_ERRORS: Mapping[int, type[StillhouseError]] = {401: NotPermitted, 403: NotPermitted, 409: Conflict}


class TaskState(Config):
    """Where Airflow sees one task instance."""

    task_id: str
    map_index: int
    state: str | None
    """Airflow's own word; None before it is scheduled."""
    try_number: int
    start: datetime | None
    end: datetime | None


class AirflowClient:
    """Talks to one Airflow as one user."""

    def __init__(self, url: str, *, user: str, password: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=SECONDS_FOR_ANSWER)
        self._login = {"username": user, "password": password}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def log_in(self) -> None:
        """Get a token for all further calls.

        Raises:
            NotPermitted: The password is wrong.
            TryAgain: Airflow does not answer.
        """
        token = self._call("POST", "/auth/token", json=self._login)["access_token"]
        self._http.headers["Authorization"] = f"Bearer {token}"

    def parsed_at(self, dag_id: str) -> datetime | None:
        """Return when Airflow last read a DAG that it can run, or None if it knows no such DAG."""
        answer = self._http_call("GET", f"/api/v2/dags/{dag_id}")
        if not answer.is_success or answer.json()["is_stale"]:
            return None
        return datetime.fromisoformat(answer.json()["last_parsed_time"])

    def import_errors(self) -> list[str]:
        """Return the last line of each import error: for a recipe, its file, field and what is allowed."""
        errors = self._call("GET", "/api/v2/importErrors")["import_errors"]
        return [error["stack_trace"].strip().splitlines()[-1] for error in errors]

    def unpause(self, dag_id: str) -> None:
        """Let runs of a DAG start."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": False})

    def unfinished_runs(self, dag_id: str) -> list[str]:
        """Return the ids of runs that wait or run."""
        found = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns", params={"state": UNFINISHED, "limit": 50})
        return [run["dag_run_id"] for run in found["dag_runs"]]

    def close_run(self, dag_id: str, run_id: str, note: str) -> None:
        """Mark a run, and what of it is unfinished, as failed."""
        body = {"state": "failed", "note": note}
        self._call("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", json=body)

    def trigger(self, dag_id: str, run_id: str, parameters: Mapping[str, Any]) -> None:
        """Start a run under a name of our choice.

        Raises:
            Conflict: A run of that name exists.
            ConfigurationError: A parameter is refused; nothing was started.
        """
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(parameters)}
        self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return a run's state: queued, running, success or failed."""
        state: str = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}")["state"]
        return state

    def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        """Return every task instance of a run."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        found = self._call("GET", path, params={"limit": 100})["task_instances"]
        return [
            TaskState(
                task_id=task["task_id"],
                map_index=task["map_index"],
                state=task["state"],
                try_number=task["try_number"],
                start=task["start_date"],
                end=task["end_date"],
            )
            for task in found
        ]

    def question(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        """Return what a task asks a person: subject, Markdown body, options, and the answer if there is one."""
        return self._call("GET", f"{self._instance(dag_id, run_id, task_id)}/hitlDetails")

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """Answer a task that waits for a person.

        Raises:
            Conflict: It was answered before.
        """
        body = {"chosen_options": [option], "params_input": {}}
        self._call("PATCH", f"{self._instance(dag_id, run_id, task_id)}/hitlDetails", json=body)

    def _instance(self, dag_id: str, run_id: str, task_id: str) -> str:
        return f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1"

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer = self._http_call(method, path, **request)
        if answer.is_success:
            document: dict[str, Any] = answer.json()
            return document
        kind = TryAgain if answer.is_server_error else _ERRORS.get(answer.status_code, ConfigurationError)
        raise kind(f"Airflow refuses {method} {path} ({answer.status_code}): {_reason(answer)}")

    def _http_call(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise TryAgain(f"Airflow at {self.url} does not answer ({type(error).__name__})") from None


def _reason(answer: httpx.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return answer.reason_phrase
    text = detail if isinstance(detail, str) else json.dumps(detail)
    return " ".join(text.split())[:300]
