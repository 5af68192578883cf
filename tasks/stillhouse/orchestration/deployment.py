"""Settings of the place where workflows run. Never part of a recipe or of a run's parameters.

They come from the YAML file that ``STILLHOUSE_DEPLOYMENT`` names, if any, and from single variables, which go first.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import TypeAdapter, ValidationError, field_validator

from stillhouse.contract import ConfigurationError, check_address
from stillhouse.orchestration.runtimes import LocalRuntime, Runtime
from stillhouse.recipe import Config, explain

DEPLOYMENT_FILE = "STILLHOUSE_DEPLOYMENT"
"""Environment variable that names the file."""

_VARIABLES = {
    "store": "STILLHOUSE_STORE",
    "work": "STILLHOUSE_WORK",
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "tracking_page": "STILLHOUSE_TRACKING_PAGE",
}


class Deployment(Config):
    """Where results lie, who shows them, and how tasks are run."""

    store: str
    """Root URI of the object store. Environment: ``STILLHOUSE_STORE``."""
    work: Path
    """Folder on each machine, or in each container, for files that outlive a killed process. Environment:
    ``STILLHOUSE_WORK``."""
    tracking_uri: str | None = None
    """MLflow server. Environment: ``MLFLOW_TRACKING_URI``; without one, nothing is tracked or registered."""
    tracking_page: str | None = None
    """Where people's browsers find that server, if under another address. Environment: ``STILLHOUSE_TRACKING_PAGE``."""
    runtime: Runtime = LocalRuntime()
    """How tasks are run."""

    @field_validator("tracking_uri", "tracking_page")
    @classmethod
    def _address_names_no_one(cls, address: str | None) -> str | None:
        return address if address is None else check_address(address)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            ConfigurationError: A setting is missing or wrong, or the file is.
        """
        given = _file(environment)
        given |= {field: environment[name] for field, name in _VARIABLES.items() if environment.get(name)}
        missing = [_VARIABLES[field] for field in ("store", "work") if field not in given]
        if missing:
            raise ConfigurationError(
                f"set {' and '.join(missing)} in the environment of Airflow, or {DEPLOYMENT_FILE} to a file with them"
            )
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigurationError(f"deployment settings: {explain(error)}") from None


def runtime_from_environment(environment: Mapping[str, str] = os.environ) -> Runtime:
    """Return how tasks are run: all that the shape of a DAG depends on.

    Raises:
        ConfigurationError: The deployment's file is missing or wrong.
    """
    settings = _file(environment).get("runtime", {"kind": "local"})
    try:
        runtime: Runtime = TypeAdapter(Runtime).validate_python(settings)
    except ValidationError as error:
        raise ConfigurationError(f"deployment settings: runtime: {explain(error)}") from None
    return runtime


def _file(environment: Mapping[str, str]) -> dict[str, Any]:
    named = environment.get(DEPLOYMENT_FILE)
    if not named:
        return {}
    try:
        settings = yaml.safe_load(Path(named).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{DEPLOYMENT_FILE}: {named} can't be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{named} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{named}: a mapping is needed, with store, work and runtime")
    return settings
