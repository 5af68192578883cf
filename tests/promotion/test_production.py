"""Copies in production: proved on the far side before its champion moves, whatever was interrupted or tampered with."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from servers import free_ports, mlflow_server
from tiny import write_teacher

from stillhouse.contract import Artifact, ConfigurationError, ExitCode, IntegrityError, TryAgain
from stillhouse.promotion.ledger import Approval, Ledger
from stillhouse.promotion.lineage import TEACHERS_TAG
from stillhouse.promotion.production import COPIED_FROM_TAG, copy_to_production
from stillhouse.promotion.registry import DIGEST_TAG, SIGNATURE_TAG, Registry
from stillhouse.promotion.signing import SIGNING_KEY, SigningKeys, generate_key
from stillhouse.promotion.verify import verify_model
from stillhouse.recipe import ProductionConfig
from stillhouse.store import FileStore, describe_tree, fetch_artifact, save_tree

TEACHERS = '[{"licence":"MIT","provider":null,"teacher":"big"}]'


class Killed(BaseException):
    """Stands for the end of the process."""


@dataclass(frozen=True, kw_only=True)
class House:
    """A registry with a signed version, and where it can be copied to."""

    source: Registry
    client: MlflowClient
    far_client: MlflowClient
    far_url: str
    name: str
    artifact: Artifact
    keys: SigningKeys
    store: FileStore
    folder: Path
    run_id: str

    def config(self, *, far: bool) -> ProductionConfig:
        return ProductionConfig(model=f"{self.name}-prod", tracking_uri=self.far_url if far else None)

    def copy(self, *, far: bool, version: int = 1, sha256: str | None = None) -> int:
        return copy_to_production(
            self.config(far=far),
            source=self.source,
            model=self.name,
            version=version,
            sha256=sha256 or self.artifact.sha256,
            keys=self.keys,
        )

    def production(self, *, far: bool) -> MlflowClient:
        return self.far_client if far else self.client

    def champion(self, *, far: bool) -> int | None:
        url = self.far_url if far else self.source.uri
        return Registry(url).aliases(f"{self.name}-prod").get("champion")

    def add(self, seed: int) -> tuple[int, Artifact]:
        """Register another model."""
        path = write_teacher(self.folder / f"plain-{seed}", layers=1, seed=seed)
        artifact = save_tree(self.store, f"models/{seed}", path)
        model = fetch_artifact(artifact, self.folder / "cache")
        tags = {"stillhouse.recipe": "toy", TEACHERS_TAG: TEACHERS}
        return self.source.register(
            self.name, model, artifact, tags, mlflow_run_id=self.run_id, card="# A card"
        ), artifact


@pytest.fixture(scope="session")
def far_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("far-mlflow")) as server:
        yield server.url


@pytest.fixture
def house(mlflow_url: str, far_url: str, tmp_path: Path) -> House:
    generate_key(tmp_path / "key.pem")
    keys = SigningKeys.from_environment({SIGNING_KEY: str(tmp_path / "key.pem")})
    assert keys is not None
    client = MlflowClient(tracking_uri=mlflow_url)
    house = House(
        source=Registry(mlflow_url, keys),
        client=client,
        far_client=MlflowClient(tracking_uri=far_url),
        far_url=far_url,
        name=f"m{uuid.uuid4().hex}",
        artifact=Artifact(uri="file:///x/y", sha256="0" * 64, num_bytes=1),
        keys=keys,
        store=FileStore(tmp_path / "store"),
        folder=tmp_path,
        run_id=client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id,
    )
    _, artifact = house.add(1)
    return House(**{**vars(house), "artifact": artifact})


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the load-back, which takes ten seconds each."""
    monkeypatch.setattr(Registry, "load_back", lambda self, name, version, sha256: None)


@pytest.mark.slow
@pytest.mark.parametrize("far", [False, True])
def test_a_copy_is_the_same_signed_model_and_loads_for_its_users(
    house: House, far: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    assert house.copy(far=far) == 1
    client, name = house.production(far=far), f"{house.name}-prod"
    copy = client.get_model_version_by_alias(name, "champion")
    expected = {
        "stillhouse.recipe": "toy",
        TEACHERS_TAG: TEACHERS,
        DIGEST_TAG: house.artifact.sha256,
        SIGNATURE_TAG: house.keys.fingerprint,
        COPIED_FROM_TAG: f"models:/{house.name}/1",
    }
    assert {key: copy.tags[key] for key in expected} == expected
    url = house.far_url if far else house.source.uri
    package = Registry(url).download(name, 1, house.folder / "downloaded")
    assert describe_tree(package / "model").sha256 == house.artifact.sha256
    assert (package / "README.md").read_text() == "# A card"
    checks = verify_model(f"models:/{name}@champion", tracking_uri=url, public_pem=house.keys.public_pem)
    assert [check.outcome for check in checks] == [True] * 4
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    folder = house.folder / "loaded"
    folder.mkdir()
    classifier = mlflow.transformers.load_model(f"models:/{name}@champion", dst_path=str(folder))
    assert classifier(["the plot"])[0]["label"] in ("negative", "positive")


@pytest.mark.slow
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.usefixtures("unproved")
def test_copying_again_changes_nothing_and_an_older_version_comes_back_by_its_digest(house: House, far: bool) -> None:
    version, artifact = house.add(2)
    assert house.copy(far=far) == house.copy(far=far) == 1
    assert house.copy(far=far, version=version, sha256=artifact.sha256) == 2
    assert house.champion(far=far) == 2
    assert house.copy(far=far) == 1
    assert house.champion(far=far) == 1
    assert len(house.production(far=far).search_model_versions(f"name = '{house.name}-prod'")) == 2


FAR_STEPS = ["_log", "create_model", "_create_version", "_attach", "set_tags", "load_back", "set_alias"]
NEAR_STEPS = ["create_model", "copy_version", "set_tags", "load_back", "set_alias"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("far", "step"), [*((True, step) for step in FAR_STEPS), *((False, step) for step in NEAR_STEPS)]
)
@pytest.mark.usefixtures("unproved")
def test_a_copy_killed_after_any_step_is_finished_by_the_next_try(
    house: House, far: bool, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(Registry, step)

    def dying(*args: object, **kwargs: object) -> None:
        whole(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Registry, step, dying)
        with pytest.raises(Killed):
            house.copy(far=far)
    assert house.champion(far=far) == (1 if step == "set_alias" else None)
    assert house.copy(far=far) == 1
    assert house.champion(far=far) == 1
    client = house.production(far=far)
    assert len(client.search_model_versions(f"name = '{house.name}-prod'")) == 1
    assert client.get_model_version(f"{house.name}-prod", "1").tags[SIGNATURE_TAG] == house.keys.fingerprint
    if far:
        experiment = client.get_experiment_by_name(f"{house.name}-prod")
        assert len(client.search_logged_models([experiment.experiment_id])) == 1


def overwrite(client: MlflowClient, name: str, path: Path, folder: str | None = None) -> None:
    source = client.get_model_version(name, "1").source
    client.log_model_artifact(source.removeprefix("models:/"), str(path), folder)


@pytest.mark.slow
def test_what_was_tampered_with_here_does_not_leave(house: House) -> None:
    config = house.folder / "config.json"
    config.write_text((house.folder / "plain-1" / "config.json").read_text() + " ")
    overwrite(house.client, house.name, config, "model")
    overwrite(house.client, house.name, config, "components/tokenizer")
    with pytest.raises(IntegrityError, match="has other files than its digest"):
        house.copy(far=True)
    with pytest.raises(IntegrityError, match="not this key's signature"):
        house.copy(far=False)
    assert house.champion(far=True) is None
    assert house.champion(far=False) is None


@pytest.mark.slow
def test_an_unsigned_model_does_not_leave_a_deployment_with_a_key(house: House) -> None:
    unsigned = Registry(house.source.uri)
    artifact = save_tree(house.store, "models/9", write_teacher(house.folder / "nine", layers=1, seed=9))
    version = unsigned.register(
        house.name, fetch_artifact(artifact, house.folder / "cache"), artifact, {}, mlflow_run_id=house.run_id
    )
    with pytest.raises(IntegrityError, match="is not signed"):
        house.copy(far=True, version=version, sha256=artifact.sha256)
    assert house.champion(far=True) is None


@pytest.mark.slow
def test_what_was_tampered_with_over_there_does_not_become_champion(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "load_back", lambda self, name, version, sha256: None)
        house.copy(far=True)
        version, artifact = house.add(2)
        house.copy(far=True, version=version, sha256=artifact.sha256)
    assert house.champion(far=True) == 2
    config = house.folder / "config.json"
    config.write_text((house.folder / "plain-1" / "config.json").read_text() + " ")
    overwrite(house.far_client, f"{house.name}-prod", config, "model")
    overwrite(house.far_client, f"{house.name}-prod", config, "components/tokenizer")
    with pytest.raises(IntegrityError, match="does not load back"):
        house.copy(far=True)
    assert house.champion(far=True) == 2


@pytest.mark.slow
def test_only_the_model_that_was_promoted_is_copied(house: House) -> None:
    with pytest.raises(IntegrityError, match="is not the model that was promoted"):
        house.copy(far=True, sha256="1" * 64)
    with pytest.raises(ConfigurationError, match="does not exist"):
        house.copy(far=True, version=7)
    itself = ProductionConfig(model=house.name, tracking_uri=f"{house.source.uri}/")
    with pytest.raises(ConfigurationError, match="itself"):
        copy_to_production(itself, source=house.source, model=house.name, version=1, sha256=house.artifact.sha256)


@pytest.mark.slow
def test_an_absent_production_server_is_told(house: House) -> None:
    config = ProductionConfig(model="prod", tracking_uri=f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(TryAgain, match="does not answer"):
        copy_to_production(
            config, source=house.source, model=house.name, version=1, sha256=house.artifact.sha256, keys=house.keys
        )


def promote(house: House, version: int = 1, artifact: Artifact | None = None) -> None:
    """Write a promotion and its outcome into the ledger, and move the alias."""
    ledger = Ledger(house.store, house.name)
    approval = Approval(mode="auto", who="toy", when=datetime.now(UTC), decision_sha256="d" * 64)
    entry = ledger.append_promotion(
        ledger.verify(),
        artifact=artifact or house.artifact,
        registered_version=version,
        champion_before=None,
        decision_sha256="d" * 64,
        run_id="run",
        approval=approval,
    )
    ledger.append_outcome(entry)
    house.source.set_alias(house.name, "champion", version)


def failures(house: House, uri: str, **options: object) -> dict[str, str]:
    given = {"tracking_uri": house.source.uri, "public_pem": house.keys.public_pem, "store": house.store} | options
    checks = verify_model(uri, **given)  # type: ignore[arg-type]
    return {check.subject: check.detail for check in checks if check.outcome is False}


@pytest.mark.slow
@pytest.mark.usefixtures("unproved")
def test_verify_finds_a_champion_in_order_and_every_lie_about_it(house: House) -> None:
    champion = f"models:/{house.name}@champion"
    promote(house)
    house.copy(far=True)
    assert failures(house, champion) == failures(house, f"models:/{house.name}/1") == {}
    assert failures(house, f"models:/{house.name}-prod@champion", tracking_uri=house.far_url) == {}
    assert "no key was given" in failures(house, champion, public_pem=None)["signature"]
    version, artifact = house.add(2)
    assert "no promotion of this model" in failures(house, f"models:/{house.name}/{version}")["ledger"]
    promote(house, version, artifact)
    house.source.set_alias(house.name, "champion", 1)
    assert failures(house, champion)["ledger"] == f"by the ledger of {house.name}, version 2 is champion"
    house.client.set_model_version_tag(house.name, "1", DIGEST_TAG, "1" * 64)
    assert set(failures(house, f"models:/{house.name}/1")) == {"digest", "ledger"}
    with pytest.raises(ConfigurationError, match="leads nowhere"):
        verify_model(f"models:/{house.name}@nobody", tracking_uri=house.source.uri)
    key = f"ledger/{house.name}/00000001.json"
    house.store.put(key, house.store.get(key).replace(b'"run"', b'"RUN"'))
    assert "entry 2 does not follow" in failures(house, champion)["ledger"]


@pytest.mark.slow
def test_the_command_says_what_is_wrong_with_a_folder(house: House) -> None:
    def verify(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        public_key = house.folder / "public.pem"
        public_key.write_bytes(house.keys.public_pem)
        command = [sys.executable, "-m", "stillhouse", "verify", str(path), "--key", str(public_key), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    package = house.source.download(house.name, 1, house.folder / "downloaded")
    for path in (package, package / "model"):
        answer = verify(path)
        assert answer.returncode == ExitCode.OK, answer.stderr
        assert answer.stdout.count("✓") == 3  # no registry knows a folder's digest
        assert "✗" not in answer.stdout
    (package / "model" / "config.json").write_text("{}")
    (package / "model" / "evil.pkl").write_bytes(b"")
    (package / "model.sig").unlink()
    answer = verify(package)
    assert answer.returncode == ExitCode.DATA
    assert answer.stdout.count("✗") == 3
    lines = answer.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == ["files", "manifest", "signature"]
    answer = verify(house.folder / "nothing")
    assert answer.returncode == ExitCode.CONFIGURATION
    assert answer.stderr.count("\n") == 1
