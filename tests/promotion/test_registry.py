"""The registry: versions are signed once, found again, and refused when what they hold was tampered with."""

import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from servers import MLFLOW_ADMIN, MLFLOW_PASSWORD, free_ports, mlflow_server_with_users
from tiny import write_teacher

from stillhouse.contract import Artifact, ConfigurationError, IntegrityError, NotPermitted, TryAgain
from stillhouse.promotion import registry as registry_module
from stillhouse.promotion.registry import DIGEST_TAG, SIGNATURE_TAG, UNSIGNED, Registry, split_model_uri
from stillhouse.promotion.signing import SIGNING_KEY, SigningKeys, generate_key, verify_signature
from stillhouse.store import FileStore, describe_tree, fetch_artifact, save_tree


@dataclass(frozen=True, kw_only=True)
class Place:
    """A registered model's name that no other test uses, a model, and the run that made it."""

    url: str
    client: MlflowClient
    name: str
    run_id: str
    artifact: Artifact
    model: Path
    folder: Path

    def keys(self, name: str = "key.pem") -> SigningKeys:
        path = self.folder / name
        if not path.exists():
            generate_key(path)
        keys = SigningKeys.from_environment({SIGNING_KEY: str(path)})
        assert keys is not None
        return keys

    def register(self, keys: SigningKeys | None = None, **options: str) -> int:
        registry = Registry(self.url, keys)
        return registry.register(
            self.name, self.model, self.artifact, {"stillhouse.recipe": "toy"}, mlflow_run_id=self.run_id, **options
        )

    def download(self) -> Path:
        return Registry(self.url).download(self.name, 1, self.folder / uuid.uuid4().hex)

    def upload(self, version: int, path: Path, folder: str | None = None) -> None:
        """Overwrite a file of a version behind Stillhouse's back."""
        source = self.client.get_model_version(self.name, str(version)).source
        self.client.log_model_artifact(source.removeprefix("models:/"), str(path), folder)

    def signature_tag(self) -> str:
        tag = self.client.get_model_version(self.name, "1").tags[SIGNATURE_TAG]
        assert isinstance(tag, str)
        return tag


@pytest.fixture
def place(mlflow_url: str, tmp_path: Path) -> Place:
    client = MlflowClient(tracking_uri=mlflow_url)
    artifact = save_tree(FileStore(tmp_path / "store"), "model", write_teacher(tmp_path / "plain", layers=1))
    return Place(
        url=mlflow_url,
        client=client,
        name=f"m{uuid.uuid4().hex}",
        run_id=client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id,
        artifact=artifact,
        model=fetch_artifact(artifact, tmp_path / "cache"),
        folder=tmp_path,
    )


def test_without_a_key_a_version_says_that_it_is_not_signed(place: Place) -> None:
    assert place.register(card="# A card") == 1
    assert place.signature_tag() == UNSIGNED
    package = place.download()
    assert not (package / "model.sig").exists()
    assert (package / "README.md").read_text() == "# A card"
    assert describe_tree(package / "model").sha256 == place.artifact.sha256


def test_with_a_key_a_version_carries_its_signature_and_no_secret(place: Place) -> None:
    keys = place.keys()
    place.register(keys)
    assert place.signature_tag() == keys.fingerprint
    package = place.download()
    verify_signature(package / "model", package / "model.sig", keys.public_pem)
    assert keys.private_key
    secret = keys.private_key.read_text().splitlines()[1]
    shown = repr(place.client.get_model_version(place.name, "1"))
    assert secret not in shown + "".join(
        path.read_text(errors="replace") for path in package.rglob("*") if path.is_file()
    )


def test_a_version_is_signed_once_and_anew_for_another_key(place: Place) -> None:
    assert place.register() == 1
    first, second = place.keys("first.pem"), place.keys("second.pem")
    assert place.register(first) == 1
    signature = (place.download() / "model.sig").read_bytes()
    assert place.register(first) == 1
    assert (place.download() / "model.sig").read_bytes() == signature
    assert place.register(second) == 1
    assert place.signature_tag() == second.fingerprint
    package = place.download()
    verify_signature(package / "model", package / "model.sig", second.public_pem)
    assert place.register() == 1
    assert place.signature_tag() == second.fingerprint


def test_a_key_that_only_verifies_registers_nothing_new(place: Place) -> None:
    keys = place.keys()
    public = SigningKeys(private_key=None, public_pem=keys.public_pem)
    with pytest.raises(ConfigurationError, match="must be signed; set STILLHOUSE_SIGNING_KEY"):
        place.register(public)
    place.register(keys)
    assert place.register(public) == 1


@pytest.mark.slow
def test_a_loaded_version_must_be_signed_by_the_deployments_key(place: Place) -> None:
    keys = place.keys()
    place.register()
    registry = Registry(place.url, keys)
    with pytest.raises(IntegrityError, match="the model is not signed"):
        registry.load_back(place.name, 1, place.artifact.sha256)
    place.register(keys)
    registry.load_back(place.name, 1, place.artifact.sha256)
    with pytest.raises(IntegrityError, match="not this key's signature"):
        Registry(place.url, place.keys("other.pem")).load_back(place.name, 1, place.artifact.sha256)


@pytest.mark.slow
def test_a_copy_of_the_tokenizer_that_was_tampered_with_is_found(place: Place) -> None:
    """Users load the tokenizer from a copy, which neither the digest nor the signature covers."""
    keys = place.keys()
    place.register(keys)
    tampered = place.folder / "tokenizer_config.json"
    tampered.write_text((place.model / "tokenizer_config.json").read_text().replace('"[UNK]"', '"[CLS]"'))
    place.upload(1, tampered, "components/tokenizer")
    with pytest.raises(IntegrityError, match=r"tokenizer_config\.json differs"):
        Registry(place.url, keys).load_back(place.name, 1, place.artifact.sha256)


def test_tags_are_those_of_stillhouse_and_missing_versions_are_named(place: Place) -> None:
    place.register()
    place.client.set_model_version_tag(place.name, "1", "team", "films")
    registry = Registry(place.url)
    assert registry.tags(place.name, 1) == {
        "stillhouse.recipe": "toy",
        DIGEST_TAG: place.artifact.sha256,
        SIGNATURE_TAG: UNSIGNED,
    }
    with pytest.raises(ConfigurationError, match="does not exist"):
        registry.tags(place.name, 2)


@pytest.mark.slow
def test_a_version_without_its_files_is_found(place: Place) -> None:
    place.client.create_registered_model(place.name)
    experiment = place.client.get_run(place.run_id).info.experiment_id
    empty = place.client.create_logged_model(experiment, name="empty")
    place.client.create_model_version(place.name, f"models:/{empty.model_id}", model_id=empty.model_id)
    registry = Registry(place.url)
    with pytest.raises(IntegrityError, match="has no files"):
        registry.download(place.name, 1, place.folder / "empty")
    with pytest.raises(IntegrityError, match="does not load back"):
        registry.load_back(place.name, 1, place.artifact.sha256)


@pytest.mark.slow
def test_a_server_that_is_away_is_no_fault_of_the_model(place: Place) -> None:
    registry = Registry(f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TryAgain, match="does not answer"):
        registry.load_back(place.name, 1, place.artifact.sha256)


@pytest.mark.slow
def test_files_that_are_out_of_reach_are_no_fault_of_the_model(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers us, and the process that loads the model has a proxy that does not."""
    place.register()
    for name, value in (("http_proxy", f"http://127.0.0.1:{free_ports(1)[0]}"), ("no_proxy", ""), ("NO_PROXY", "")):
        monkeypatch.setitem(registry_module._LOAD_BACK_SETTINGS, name, value)
    with pytest.raises(TryAgain, match="could not be loaded back"):
        Registry(place.url).load_back(place.name, 1, place.artifact.sha256)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [("models:/a@champion", ("a", "champion", None)), ("models:/a-b.c/12", ("a-b.c", None, 12))],
)
def test_model_uris_have_a_name_and_an_alias_or_a_version(uri: str, parts: tuple[object, ...]) -> None:
    assert split_model_uri(uri) == parts


@pytest.mark.parametrize("uri", ["models:/a", "models:/a/0", "models:/a/latest", "models:/a@", "models:/@x", "a@x"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="expected models:/NAME@ALIAS"):
        split_model_uri(uri)


@pytest.mark.slow
def test_a_first_version_needs_no_rights_on_models_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_server_with_users(tmp_path) as server:
        user = {"username": "tasks", "password": "another-password"}
        made = requests.post(
            f"{server.url}/api/2.0/mlflow/users/create", json=user, auth=(MLFLOW_ADMIN, MLFLOW_PASSWORD), timeout=30
        )
        made.raise_for_status()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user["username"])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", user["password"])
        registry = Registry(server.url)
        with pytest.raises(NotPermitted):
            registry.aliases("toy")
        for _ in range(2):
            registry.create_model("toy")
            assert registry.aliases("toy") == {}
