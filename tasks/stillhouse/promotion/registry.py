"""The MLflow model registry: versions that are never registered twice, aliases, and the load-back check."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException

from stillhouse.contract import Artifact, IntegrityError, TryAgain
from stillhouse.promotion.packaging import package_model
from stillhouse.tracking.server import connect, server_errors_explained

logger = logging.getLogger(__name__)

DIGEST_TAG = "stillhouse.model_sha256"
_LOAD_BACK_SECONDS = 600
_LOAD_BACK_SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Registry:
    """Registered models on one MLflow server.

    Every method raises ``TryAgain`` when the server is away and ``NotPermitted`` when it refuses the credentials.

    Args:
        tracking_uri: Address of the server.
    """

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._client = connect(tracking_uri)

    def register(
        self,
        model_name: str,
        model_folder: Path,
        artifact: Artifact,
        tags: Mapping[str, str],
        *,
        mlflow_run_id: str,
    ) -> int:
        """Return the version of ``model_name`` that holds the model; upload and register it unless there is one.

        Args:
            model_name: Name of the registered model.
            model_folder: The verified files.
            artifact: What they are; its digest becomes a tag, by which the version is found again.
            tags: Further tags of a new version.
            mlflow_run_id: The run that a new version belongs to.
        """
        with server_errors_explained(self._uri):
            found = self._find(model_name, artifact.sha256)
            if found is not None:
                return found
            model_id = self._log(model_folder, artifact, model_name=model_name, mlflow_run_id=mlflow_run_id)
            self._create_model(model_name)
            version = self._client.create_model_version(
                model_name,
                source=f"models:/{model_id}",
                run_id=mlflow_run_id,
                tags={**tags, DIGEST_TAG: artifact.sha256},
                model_id=model_id,
                await_creation_for=0,  # it is there when the call returns
            )
            links = json.dumps([{"name": model_name, "version": str(version.version)}])
            self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": links})
        logger.info("registered %s version %s", model_name, version.version)
        return int(version.version)

    def find(self, model_name: str, sha256: str) -> int | None:
        """Return the version whose files have the digest, if it is registered."""
        with server_errors_explained(self._uri):
            return self._find(model_name, sha256)

    def aliases(self, model_name: str) -> dict[str, int]:
        """Return the version behind every alias; empty if there is no such model."""
        with server_errors_explained(self._uri):
            try:
                model = self._client.get_registered_model(model_name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {alias: int(version) for alias, version in model.aliases.items()}

    def set_alias(self, model_name: str, alias: str, version: int) -> None:
        """Let ``models:/MODEL@ALIAS`` lead to the version."""
        with server_errors_explained(self._uri):
            self._client.set_registered_model_alias(model_name, alias, str(version))

    def set_tags(self, model_name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with server_errors_explained(self._uri):
            for name, value in tags.items():
                self._client.set_model_version_tag(model_name, str(version), name, value)

    def load_back(self, model_name: str, version: int, sha256: str) -> None:
        """Load a version in a fresh process, check its files and let it predict.

        Raises:
            IntegrityError: It does not load, does not predict, or has other files than were registered.
        """
        uri = f"models:/{model_name}/{version}"
        command = [sys.executable, "-m", "stillhouse.promotion.loadback", uri]
        environment = {**os.environ, **_LOAD_BACK_SETTINGS, "MLFLOW_TRACKING_URI": self._uri}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_LOAD_BACK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise TryAgain(f"{uri} did not load back within {_LOAD_BACK_SECONDS} s; run again") from None
        if done.returncode:
            self.aliases(model_name)  # raises TryAgain if it is the server that is away
            reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
            raise IntegrityError(f"{uri} does not load back, so it is not promoted: {reason.strip()}")
        if json.loads(done.stdout.splitlines()[-1])["sha256"] != sha256:
            raise IntegrityError(f"{uri} holds other files than were evaluated, so it is not promoted; delete it")

    def _find(self, model_name: str, sha256: str) -> int | None:
        versions = self._client.search_model_versions(f"name = '{model_name}' and tags.`{DIGEST_TAG}` = '{sha256}'")
        return min((int(version.version) for version in versions), default=None)

    def _create_model(self, model_name: str) -> None:
        with suppress(MlflowException):  # it exists, or the next call says what is wrong
            self._client.create_registered_model(model_name)

    def _log(self, model_folder: Path, artifact: Artifact, *, model_name: str, mlflow_run_id: str) -> str:
        experiment_id = self._client.get_run(mlflow_run_id).info.experiment_id
        query = f"name = '{model_name}' AND tags.`{DIGEST_TAG}` = '{artifact.sha256}'"
        for uploaded in self._client.search_logged_models([experiment_id], filter_string=query):
            if uploaded.status == LoggedModelStatus.READY:  # by a try that was killed before it registered the model
                return str(uploaded.model_id)
        model = self._client.create_logged_model(
            experiment_id, name=model_name, source_run_id=mlflow_run_id, tags={DIGEST_TAG: artifact.sha256}
        )
        with TemporaryDirectory() as folder:
            package = Path(folder, "package")
            package_model(model_folder, package, model_id=model.model_id)
            self._client.log_model_artifacts(model.model_id, str(package))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(mlflow_run_id, models=[LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)
