"""The servers that every deployment has: the object store and MLflow. Each is asked to do what tasks will ask of it."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx

from stillhouse.contract import Conflict, StillhouseError
from stillhouse.orchestration.doctor.finding import Finding
from stillhouse.store import ObjectStore, open_store

PROBES = "doctor"
"""Prefix in the object store, and experiment in MLflow, of what the doctor writes and removes again."""
RACERS = 8
SECONDS_FOR_ANSWER = 15.0


def examine_store(root: str) -> Iterator[Finding]:
    """Write, read back, list, race and delete a small object of the doctor's own."""
    subject = "object store"
    try:
        store = open_store(root)
        key = f"{PROBES}/{uuid4().hex}"
        try:
            remedy = _probe_store(store, key)
        finally:
            store.delete(key)
        if not remedy and store.keys(key):
            remedy = "it deletes nothing: let its server delete objects"
    except StillhouseError as error:
        yield Finding(subject=subject, found=root, remedy=str(error))
        return
    told = "unfit" if remedy else f"writes, reads back, deletes; one winner of {RACERS} racing writes"
    yield Finding(subject=subject, found=f"{root}: {told}", remedy=remedy)


def _probe_store(store: ObjectStore, key: str) -> str:
    """Return what is wrong with a store that answers, or nothing."""

    def race(number: int) -> str | None:
        try:
            return store.put_if(key, f"racer {number}".encode(), version=None)
        except Conflict:
            return None

    with ThreadPoolExecutor(RACERS) as racers:
        winners = [version for version in racers.map(race, range(RACERS)) if version is not None]
    if len(winners) != 1:
        return (
            f"{len(winners)} of {RACERS} writes won that only one may win: its server must honour If-None-Match, "
            "or two promotions could both succeed"
        )
    try:
        store.put_if(key, b"late", version="0" * 32)
        return "a write against a wrong version won: its server must honour If-Match"
    except Conflict:
        pass
    store.put(key, b"probe")
    return "" if store.get(key) == b"probe" and store.keys(key) == [key] else "it gives back other bytes than it took"


def examine_mlflow(uri: str | None) -> Iterator[Finding]:
    """Make an experiment, a run, an artifact and a registered model of the doctor's own; take away what can be.

    Asked over REST, since Airflow's image has no MLflow. MLflow keeps the experiment, with one run, for the next time.
    """
    if uri is None or not uri.startswith(("http://", "https://")):
        found = "none: results are neither shown nor registered" if uri is None else f"{uri}: no server to ask"
        yield Finding(subject="MLflow", found=found)
        return
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    credentials = (user, password) if user and password else None
    told = f"{uri} as {user}" if credentials else f"{uri} without credentials"
    with httpx.Client(base_url=uri.rstrip("/"), auth=credentials, timeout=SECONDS_FOR_ANSWER) as client:
        try:
            _probe_mlflow(client, f"stillhouse-{PROBES}" + (f"-{user}" if credentials else ""))
        except httpx.HTTPStatusError as error:
            yield Finding(subject="MLflow", found=told, remedy=_explain(error))
            return
        except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError) as error:
            remedy = f"no MLflow answers there ({type(error).__name__}): start it, or correct MLFLOW_TRACKING_URI"
            yield Finding(subject="MLflow", found=told, remedy=remedy)
            return
    yield Finding(subject="MLflow", found=f"{told}: may track, store artifacts and register models")


def _probe_mlflow(client: httpx.Client, name: str) -> None:
    _ask(client, "GET", "experiments/search", params={"max_results": 1})
    experiment = _experiment(client, name)
    runs = _ask(client, "POST", "runs/search", json={"experiment_ids": [experiment], "max_results": 1}).get("runs")
    run = runs[0] if runs else _ask(client, "POST", "runs/create", json={"experiment_id": experiment})["run"]
    place = str(run["info"]["artifact_uri"])
    if place.startswith("mlflow-artifacts:/"):
        path = quote(f"{place.removeprefix('mlflow-artifacts:').lstrip('/')}/probe.txt")
        address = f"/api/2.0/mlflow-artifacts/artifacts/{path}"
        client.put(address, content=b"probe").raise_for_status()
        if client.get(address).raise_for_status().content != b"probe":
            raise ValueError("the artifact came back changed")
        client.delete(address).raise_for_status()
    model = {"name": f"stillhouse-{PROBES}-{uuid4().hex}"}
    _ask(client, "POST", "registered-models/create", json=model)
    _ask(client, "DELETE", "registered-models/delete", json=model)


def _experiment(client: httpx.Client, name: str) -> str:
    try:
        found = _ask(client, "GET", "experiments/get-by-name", params={"experiment_name": name})["experiment"]
    except httpx.HTTPStatusError as error:
        if error.response.status_code != 404:
            raise
        found = _ask(client, "POST", "experiments/create", json={"name": name})
    return str(found["experiment_id"])


def _ask(client: httpx.Client, method: str, path: str, **content: Any) -> dict[str, Any]:
    answer = client.request(method, f"/api/2.0/mlflow/{path}", **content).raise_for_status().json()
    if not isinstance(answer, dict):
        raise ValueError("not an answer of MLflow")
    return answer


def _explain(error: httpx.HTTPStatusError) -> str:
    status, what = error.response.status_code, error.request.url.path.partition("/mlflow")[2].lstrip("/")
    if status == 401:
        return "it refuses the credentials: correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if status == 403 and "host" in error.response.text[:200].lower():
        return "it does not know this host name: add it to --allowed-hosts of the server"
    if status == 403:
        return f"this user may not use {what}: its administrator must grant it"
    if "artifacts/" in what:
        return f"it can't keep artifacts ({status}): check --artifacts-destination and the server's rights there"
    return f"it answers {status} to {what}: look into its log"
