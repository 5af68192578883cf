"""The files that travel between stages: artifacts, requests, results, and the record of each task of a run."""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from stillhouse.contract.addresses import check_address
from stillhouse.contract.canonical import pretty_json, sha256_of
from stillhouse.recipe import Config, Recipe, Sha256, StageName, parse_recipe

RESULT_FILE = "result.json"
"""Written last: its verified existence is the only meaning of "done"."""


class Artifact(Config):
    """A stored file or folder, with the digest that it must have whenever it is read."""

    uri: str
    """Where it is: an object, or the prefix of a folder."""
    sha256: Sha256
    """Of the file's bytes, or of a folder's canonical manifest."""
    num_bytes: int = Field(ge=0)
    """Size of the file, or of all files of the folder."""
    kind: Literal["file", "tree"] = "file"


class ResultRef(Config):
    """What travels between Airflow tasks: the place and the digest of a ``result.json``."""

    uri: str
    sha256: Sha256


class StageRequest(Config):
    """What one stage is asked to do. Everything that it depends on is in here, or pinned by it."""

    schema_id: Literal["stillhouse/stage-request/1"] = "stillhouse/stage-request/1"
    stage: StageName
    run_id: str
    """The workflow run that asks first; a later run may reuse the result."""
    task_id: str
    """The task within the run: the stage's name, and its arm or shard."""
    recipe: dict[str, Any]
    """The whole validated recipe, as plain data."""
    parameters: dict[str, Any] = {}
    """What sets this task apart from others of its stage, such as ``arm`` or ``shard``."""
    inputs: dict[str, Artifact] = {}
    """Artifacts of earlier stages, by name."""
    store: str
    """Root URI of the object store."""
    tracking_uri: str | None = None
    """MLflow server; None leaves tracking out."""
    links: dict[str, str] = {}
    """Addresses to show beside the result, by name, such as that of the run in Airflow. No part of the content key."""

    @field_validator("tracking_uri")
    @classmethod
    def _address_names_no_one(cls, address: str | None) -> str | None:
        return address if address is None else check_address(address)

    @property
    def sha256(self) -> str:
        """Digest of the request as it is stored."""
        return sha256_of(pretty_json(self))

    def parsed_recipe(self) -> Recipe:
        """Return the recipe as its model.

        Raises:
            RecipeError: The request holds no valid recipe.
        """
        return parse_recipe(self.recipe, base=Path("/"), name="request.recipe")


class StageResult(Config):
    """What one stage did. Content-addressed: runs that ask the same share it."""

    schema_id: Literal["stillhouse/stage-result/1"] = "stillhouse/stage-result/1"
    status: Literal["succeeded"] = "succeeded"
    stage: StageName
    key: Sha256
    """Content key; see `stillhouse.contract.keys`."""
    parameters: dict[str, Any] = {}
    inputs: dict[str, Artifact] = {}
    outputs: dict[str, Artifact] = {}
    metrics: dict[str, float] = {}
    """Figures that describe the outcome, by name; see each stage."""
    summary: str
    """One line for people."""
    started_at: datetime
    finished_at: datetime
    seconds: float = Field(ge=0)
    """Wall time, all tries of this task on this machine that led to the result counted in."""
    cpu_seconds: float = Field(ge=0)
    """User and system time of the process that finished."""
    peak_memory_bytes: int = Field(ge=0)
    """Largest resident size of the process that finished."""
    device_seconds: float = Field(default=0.0, ge=0)
    """``seconds`` times the accelerators that the process saw, on all nodes; 0 on a CPU."""
    cost: float | None = None
    """In the currency of the deployment; None where no price is configured."""
    code_version: Sha256
    """Digest of the code that can change this stage's result."""
    image_digest: str | None = None
    """Of the container image; None outside a container."""


class Progress(Config):
    """How far a task is."""

    done: float = Field(ge=0)
    total: float = Field(gt=0)
    unit: str
    """What ``done`` and ``total`` count, in the plural."""
    rate: float | None = None
    """``rate_unit`` per second."""
    rate_unit: str = "samples"
    seconds_left: float | None = None


class TaskRecord(Config):
    """Where a task of a run stands, for people and for whoever follows the run. Replaced atomically as it changes."""

    schema_id: Literal["stillhouse/task-record/1"] = "stillhouse/task-record/1"
    run_id: str
    task_id: str
    stage: StageName
    state: Literal["running", "succeeded", "reused", "failed"]
    updated_at: datetime
    request_sha256: Sha256 | None = None
    """Of the request that it is about: a task that is cleared may be asked for something else."""
    key: Sha256 | None = None
    result: ResultRef | None = None
    progress: Progress | None = None
    message: str = ""
    """What it did, what it does, or why it failed: one line without data from users."""
    exit_code: int | None = None
    mlflow_run_id: str | None = None

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with ``changes``."""
        return self.model_validate(self.model_dump() | changes)
