"""The MLflow model registry: versions that are never registered twice, aliases, and the load-back check."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.artifacts
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException

from stillhouse.contract import Artifact, ConfigurationError, ExitCode, IntegrityError, TryAgain
from stillhouse.promotion.packaging import CARD_FILE, MODEL_FOLDER, SIGNATURE_FILE, package_model
from stillhouse.promotion.signing import SIGNING_KEY, VERIFY_KEY, SigningKeys, sign_model
from stillhouse.tracking.server import connect, server_errors_explained

logger = logging.getLogger(__name__)

DIGEST_TAG = "stillhouse.model_sha256"
SIGNATURE_TAG = "stillhouse.signature"
"""Fingerprint of the public key, or ``none`` where the deployment has no key."""
UNSIGNED = "none"
_LOGGED_MODEL = "models:/"
_LOAD_BACK_SECONDS = 600
_LOAD_BACK_SETTINGS = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def split_model_uri(uri: str) -> tuple[str, str | None, int | None]:
    """Return name, alias and version of a registered model; one of the latter two is None.

    Raises:
        ConfigurationError: It has another form than ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:@([\w-]+)|/([1-9]\d*))", uri)
    if not found:
        raise ConfigurationError(f"{uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = found.groups()
    return name, alias, int(version) if version else None


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """A version that Stillhouse registered."""

    model: str
    """Name of the registered model."""
    version: int
    tags: Mapping[str, str]
    """Those that Stillhouse set."""


class Registry:
    """Registered models on one MLflow server.

    Every method raises ``TryAgain`` when the server is away and ``NotPermitted`` when it refuses the credentials.

    Args:
        tracking_uri: Address of the server.
        keys: Sign what is registered, and verify what is loaded back. None where the deployment has no key.
    """

    def __init__(self, tracking_uri: str, keys: SigningKeys | None = None) -> None:
        self._uri = tracking_uri
        self._keys = keys
        self._client = connect(tracking_uri)

    @property
    def uri(self) -> str:
        """Address of the server."""
        return self._uri

    @property
    def keys(self) -> SigningKeys | None:
        """What signs and verifies here."""
        return self._keys

    def create_model(self, model_name: str) -> None:
        """Create a registered model, unless there is one.

        A server that grants no permissions by default answers a question about a model that does not exist with a
        refusal, so that nobody learns which ones do. Whoever is about to register the first version creates it first.
        """
        with suppress(MlflowException):  # it exists, or the next call says what is wrong
            self._client.create_registered_model(model_name)

    def register(
        self,
        model_name: str,
        model_folder: Path,
        artifact: Artifact,
        tags: Mapping[str, str],
        *,
        mlflow_run_id: str,
        card: str | None = None,
    ) -> int:
        """Return the signed version of ``model_name`` that holds the model; upload and register it unless there is one.

        Args:
            model_name: Name of the registered model.
            model_folder: The verified files, as `stillhouse.store.fetch_artifact` gives them.
            artifact: What they are; its digest becomes a tag, by which the version is found again.
            tags: Further tags of a new version.
            mlflow_run_id: The run that a new version belongs to.
            card: Model card of a new version, in Markdown.

        Raises:
            ConfigurationError: The deployment has a public key, and no private one to sign with.
        """
        with server_errors_explained(self._uri):
            version = self._find(model_name, artifact.sha256)
            if version is None:
                experiment_id = self._client.get_run(mlflow_run_id).info.experiment_id
                model_id = self._log(
                    model_folder,
                    artifact.sha256,
                    model_name=model_name,
                    experiment_id=experiment_id,
                    mlflow_run_id=mlflow_run_id,
                    card=card,
                )
                tags = {**tags, DIGEST_TAG: artifact.sha256}
                version = self._create_version(model_name, model_id, tags, mlflow_run_id=mlflow_run_id)
            self._sign(model_name, version, model_folder)
        return version

    def copy_version(self, model_name: str, version: int, target_name: str, tags: Mapping[str, str]) -> int:
        """Return the version of another registered model here that holds the same model; copy it unless there is one.

        The copy shares the artifacts of the original, and outlives it.

        Args:
            model_name: The original's registered model.
            version: The original.
            target_name: The copy's registered model.
            tags: Tags of the copy, with the digest.
        """
        with server_errors_explained(self._uri):
            copy = self._find(target_name, tags[DIGEST_TAG])
            if copy is None:
                self.create_model(target_name)
                # As ``MlflowClient.copy_model_version``, which prints, and makes a refusal look like a broken server.
                created = self._client.create_model_version(
                    target_name,
                    source=f"models:/{model_name}/{version}",
                    run_id=self._client.get_model_version(model_name, str(version)).run_id,
                    tags=dict(tags),
                    await_creation_for=0,
                )
                copy = int(created.version)
        self.set_tags(target_name, copy, tags)  # the original may have been signed anew since
        return copy

    def receive(self, target_name: str, package: Path, tags: Mapping[str, str]) -> int:
        """Return the version that holds a model of another server; upload and register it unless there is one.

        Args:
            target_name: Name of the registered model, and of the experiment that its files go to.
            package: The package, checked and verified.
            tags: Tags of the original, with its digest.
        """
        with server_errors_explained(self._uri):
            version = self._find(target_name, tags[DIGEST_TAG])
            if version is None:
                card = package / CARD_FILE
                model_id = self._log(
                    package / MODEL_FOLDER,
                    tags[DIGEST_TAG],
                    model_name=target_name,
                    experiment_id=self._experiment(target_name),
                    mlflow_run_id=None,
                    card=card.read_text(encoding="utf-8") if card.is_file() else None,
                )
                unsigned = {name: value for name, value in tags.items() if name != SIGNATURE_TAG}
                version = self._create_version(target_name, model_id, unsigned, mlflow_run_id=None)
            signature = package / SIGNATURE_FILE
            self._attach(target_name, version, signature if signature.is_file() else None, tags[SIGNATURE_TAG])
        self.set_tags(target_name, version, tags)
        return version

    def find(self, model_name: str, sha256: str) -> int | None:
        """Return the version whose files have the digest, if it is registered."""
        with server_errors_explained(self._uri):
            return self._find(model_name, sha256)

    def resolve(self, uri: str) -> tuple[str, int]:
        """Return model and version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` leads to.

        Raises:
            ConfigurationError: The alias leads nowhere, or ``uri`` has another form.
        """
        name, alias, version = split_model_uri(uri)
        if version is None:
            version = self.aliases(name).get(alias or "")
        if version is None:
            raise ConfigurationError(f"{uri} leads nowhere at {self._uri}; correct the name or the alias")
        return name, version

    def versions(self) -> Iterator[RegisteredVersion]:
        """Yield every version of every model that Stillhouse registered, by model, newest first."""
        page: str | None = None
        while page != "":
            with server_errors_explained(self._uri):
                found = self._client.search_model_versions(
                    f"tags.`{DIGEST_TAG}` LIKE '%'", order_by=["name ASC", "version_number DESC"], page_token=page
                )
            for version in found:
                yield RegisteredVersion(model=version.name, version=int(version.version), tags=_own(version.tags))
            page = found.token or ""

    def tags(self, model_name: str, version: int) -> dict[str, str]:
        """Return the tags of a version that Stillhouse set.

        Raises:
            ConfigurationError: There is no such version.
        """
        with server_errors_explained(self._uri):
            try:
                return self._tags(model_name, version)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                raise ConfigurationError(f"models:/{model_name}/{version} does not exist at {self._uri}") from None

    def download(self, model_name: str, version: int, folder: Path) -> Path:
        """Download the package of a version into ``folder``, and return where it lies.

        Raises:
            IntegrityError: The server has the version and not its files.
        """
        with server_errors_explained(self._uri):
            # By the place of the files: ``models:/`` is looked up at MLflow's global registry, whatever is given.
            place = self._client.get_model_version_download_uri(model_name, str(version))
            if not mlflow.artifacts.list_artifacts(artifact_uri=place, tracking_uri=self._uri):
                raise IntegrityError(
                    f"models:/{model_name}/{version} at {self._uri} has no files; delete it, then promote again"
                )
            downloaded = mlflow.artifacts.download_artifacts(
                artifact_uri=place, dst_path=str(folder), tracking_uri=self._uri
            )
        return Path(downloaded)

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

    def delete_alias(self, model_name: str, alias: str) -> None:
        """Let ``models:/MODEL@ALIAS`` lead nowhere; that there is no such alias is no error."""
        with server_errors_explained(self._uri):
            self._client.delete_registered_model_alias(model_name, alias)

    def set_tags(self, model_name: str, version: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        with server_errors_explained(self._uri):
            for name, value in tags.items():
                self._client.set_model_version_tag(model_name, str(version), name, value)

    def load_back(self, model_name: str, version: int, sha256: str) -> None:
        """Check a version's files, and its signature if there are keys, and let it predict, all in a fresh process.

        Raises:
            IntegrityError: It does not load, does not predict, holds more than data, has other files than were
                registered, or is not signed by the deployment's key.
            ConfigurationError: There is no such version.
            TryAgain: Its files can't be had now, or the process was killed.
        """
        uri = f"models:/{model_name}/{version}"
        command = [sys.executable, "-m", "stillhouse.promotion.loadback", uri]
        if self._keys:
            command.append(self._keys.public_pem.decode())
        environment = {**os.environ, **_LOAD_BACK_SETTINGS, "MLFLOW_TRACKING_URI": self._uri}
        environment.pop("MLFLOW_REGISTRY_URI", None)
        for name in (SIGNING_KEY, VERIFY_KEY):  # what loads a model needs no key to sign with
            environment.pop(name, None)
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=_LOAD_BACK_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise TryAgain(f"{uri} did not load back within {_LOAD_BACK_SECONDS} s; run again") from None
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message").strip()
        if done.returncode == ExitCode.TRY_AGAIN:
            self.tags(model_name, version)  # says so if the server is away, or has no such version
        if done.returncode == ExitCode.TRY_AGAIN or done.returncode < 0:
            raise TryAgain(f"{uri} could not be loaded back ({reason}); run again")
        if done.returncode:
            raise IntegrityError(f"{uri} does not load back, so it is not promoted: {reason}")
        if json.loads(done.stdout.splitlines()[-1])["sha256"] != sha256:
            raise IntegrityError(f"{uri} holds other files than were evaluated, so it is not promoted; delete it")

    def _find(self, model_name: str, sha256: str) -> int | None:
        versions = self._client.search_model_versions(f"name = '{model_name}' and tags.`{DIGEST_TAG}` = '{sha256}'")
        return min((int(version.version) for version in versions), default=None)

    def _tags(self, model_name: str, version: int) -> dict[str, str]:
        return _own(self._client.get_model_version(model_name, str(version)).tags)

    def _create_version(
        self, model_name: str, model_id: str, tags: Mapping[str, str], *, mlflow_run_id: str | None
    ) -> int:
        self.create_model(model_name)
        created = self._client.create_model_version(
            model_name,
            source=f"{_LOGGED_MODEL}{model_id}",
            run_id=mlflow_run_id,
            tags=dict(tags),
            model_id=model_id,
            await_creation_for=0,  # it is there when the call returns
        )
        links = json.dumps([{"name": model_name, "version": str(created.version)}])
        self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": links})
        logger.info("registered %s version %s at %s", model_name, created.version, self._uri)
        return int(created.version)

    def _log(
        self,
        model_folder: Path,
        sha256: str,
        *,
        model_name: str,
        experiment_id: str,
        mlflow_run_id: str | None,
        card: str | None,
    ) -> str:
        query = f"name = '{model_name}' AND tags.`{DIGEST_TAG}` = '{sha256}'"
        for uploaded in self._client.search_logged_models([experiment_id], filter_string=query):
            if uploaded.status == LoggedModelStatus.READY:  # by a try that was killed before it registered the model
                return str(uploaded.model_id)
        model = self._client.create_logged_model(
            experiment_id, name=model_name, source_run_id=mlflow_run_id, tags={DIGEST_TAG: sha256}
        )
        with TemporaryDirectory() as folder:
            package = Path(folder, "package")
            package_model(model_folder, package, model_id=model.model_id, card=card)
            self._client.log_model_artifacts(model.model_id, str(package))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        if mlflow_run_id is not None:
            self._client.log_outputs(mlflow_run_id, models=[LoggedModelOutput(model.model_id, step=0)])
        return str(model.model_id)

    def _sign(self, model_name: str, version: int, model_folder: Path) -> None:
        """Sign a version, unless it is: a new one, one from before there was a key, or one of another key."""
        found = self._tags(model_name, version).get(SIGNATURE_TAG)
        if self._keys is None:
            if found is None:
                self._attach(model_name, version, None, UNSIGNED)
            return
        if found == self._keys.fingerprint:
            return
        if self._keys.private_key is None:
            raise ConfigurationError(f"models:/{model_name}/{version} must be signed; set {SIGNING_KEY}, too")
        with TemporaryDirectory() as folder:
            signature = Path(folder, SIGNATURE_FILE)
            sign_model(model_folder, self._keys.private_key, signature)
            self._attach(model_name, version, signature, self._keys.fingerprint)

    def _attach(self, model_name: str, version: int, signature: Path | None, tag: str) -> None:
        """Put a signature beside the files of a version, then say so in its tag, unless the tag says so already."""
        found = self._client.get_model_version(model_name, str(version))
        if found.tags.get(SIGNATURE_TAG) == tag:
            return
        if signature is not None:
            self._client.log_model_artifact(found.source.removeprefix(_LOGGED_MODEL), str(signature))
        self._client.set_model_version_tag(model_name, str(version), SIGNATURE_TAG, tag)

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))


def _own(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in tags.items() if name.startswith("stillhouse.")}
