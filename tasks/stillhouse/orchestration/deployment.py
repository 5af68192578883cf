"""Settings of the place where workflows run. Never part of a recipe or of a run's parameters."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from stillhouse.contract import ConfigurationError
from stillhouse.recipe import Config, explain


class Deployment(Config):
    """Where results lie, who shows them, and how tasks are run."""

    store: str
    """Root URI of the object store. Environment: ``STILLHOUSE_STORE``."""
    work: Path
    """Folder on each machine for files that outlive a killed process. Environment: ``STILLHOUSE_WORK``."""
    tracking_uri: str | None = None
    """MLflow server. Environment: ``MLFLOW_TRACKING_URI``; without one, nothing is tracked or registered."""
    runtime: Literal["local"] = "local"
    """How tasks are run. Environment: ``STILLHOUSE_RUNTIME``."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings.

        Raises:
            ConfigurationError: A setting is missing or wrong.
        """
        names = {
            "store": "STILLHOUSE_STORE",
            "work": "STILLHOUSE_WORK",
            "tracking_uri": "MLFLOW_TRACKING_URI",
            "runtime": "STILLHOUSE_RUNTIME",
        }
        given = {field: environment[name] for field, name in names.items() if environment.get(name)}
        missing = [names[field] for field in ("store", "work") if field not in given]
        if missing:
            raise ConfigurationError(f"set {' and '.join(missing)} in the environment of Airflow")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigurationError(f"deployment settings: {explain(error)}") from None
