"""Models of the deployment's MLflow registry as sources. Imported, and mlflow with it, where a recipe names one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from requests import RequestException

from stillhouse.contract import ConfigurationError, TryAgain, be_quiet, canonical_json, sha256_of
from stillhouse.recipe.sources import RegistrySource
from stillhouse.store.downloads import cached_entry


def fetch_registered(source: RegistrySource, cache: Path) -> Path:
    """Return the local folder of a registered model's weights; see `stillhouse.store.fetch_source`."""
    version = _resolve(source)

    def fill(folder: Path) -> None:
        with _errors_explained(source):
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{version.name}/{version.version}", dst_path=str(folder)
            )

    entry = cached_entry(cache / "registered" / sha256_of(canonical_json(_named(version))), fill)
    found = sorted(path.parent for path in entry.rglob("*.safetensors"))
    if not found:
        raise ConfigurationError(f"{source.uri} has no safetensors weights; name a version that has")
    return found[0]


def fingerprint_registered(source: RegistrySource) -> str:
    """Return a digest of the version that the source leads to today; see `stillhouse.store.fingerprint_source`."""
    return sha256_of(canonical_json(_named(_resolve(source))))


def _resolve(source: RegistrySource) -> Any:
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigurationError(f"{source.uri} needs an MLflow server; set MLFLOW_TRACKING_URI")
    be_quiet()
    client = mlflow.MlflowClient()
    name, at, alias = source.uri.removeprefix("models:/").partition("@")
    with _errors_explained(source):
        if at:
            return client.get_model_version_by_alias(name, alias)
        name, _, version = name.rpartition("/")
        return client.get_model_version(name, version)


def _named(version: Any) -> dict[str, str]:
    # The number of a version is given anew in another registry; what it was made from is not.
    return {"name": version.name, "version": str(version.version), "source": version.source}


@contextmanager
def _errors_explained(source: RegistrySource) -> Iterator[None]:
    """Raise ``TryAgain`` when the server is away and ``ConfigurationError`` when it knows no such model."""
    away = f"MLflow does not answer for {source.uri}; start it, then run again"
    try:
        yield
    except RequestException as error:
        raise TryAgain(away) from error
    except MlflowException as error:
        status = error.get_http_status_code()
        if status >= 500 or status == 429:
            raise TryAgain(away) from error
        raise ConfigurationError(f"{source.uri} can't be had ({error.error_code}); correct the source") from error
