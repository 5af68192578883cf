"""Promotions on a real MLflow server: aliases follow the ledger, whatever is interrupted or raced."""

import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from promotions import Killed
from servers import free_ports
from tiny import write_teacher

from stillhouse.contract import ConfigurationError, Conflict, Decision, IntegrityError, NotPermitted, TryAgain
from stillhouse.promotion import Approval, Ledger
from stillhouse.promotion.promote import Promotion, PromotionRequest, promote_model
from stillhouse.promotion.registry import Registry
from stillhouse.recipe import RegistrySource
from stillhouse.store import FileStore, describe_tree, fetch_artifact, fetch_source, fingerprint_source, save_tree


class Untested(Registry):
    """A registry whose versions are not loaded back, which takes ten seconds each."""

    def load_back(self, model_name: str, version: int, sha256: str) -> None:
        pass


@dataclass(kw_only=True)
class House:
    """A store, a registry and a registered model's name that no other test uses."""

    store: FileStore
    url: str
    client: MlflowClient
    experiment_id: str
    mlflow_run_id: str
    name: str
    folder: Path

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, self.name)

    def request(self, seed: int, **changes: object) -> PromotionRequest:
        """A model that was judged against today's champion, and approved."""
        path = write_teacher(self.folder / f"{seed}-{uuid.uuid4().hex}", layers=2, seed=seed)
        artifact = save_tree(self.store, f"models/{seed}", path)
        head = self.ledger.head()
        champion = head.artifact.sha256 if head and head.artifact.sha256 != artifact.sha256 else None
        fields = {
            "verdict": "promote",
            "candidate": "kd",
            "model_sha256": artifact.sha256,
            "champion_sha256": champion,
            "policy": "strict",
            "policy_sha256": "1" * 64,
            "evidence_sha256": "2" * 64,
            "rules": (),
        }
        decision = Decision.model_validate(fields | changes)
        return PromotionRequest(
            model=self.name,
            artifact=artifact,
            folder=fetch_artifact(artifact, self.folder / "cache"),
            decision=decision,
            approval=Approval(mode="auto", who="toy", when=datetime.now(UTC), decision_sha256=decision.digest),
            run_id=f"run-{seed}",
            mlflow_run_id=self.mlflow_run_id,
            tags={"stillhouse.recipe": "toy"},
        )

    def promote(self, request: PromotionRequest, registry: Registry | None = None) -> Promotion:
        return promote_model(request, ledger=self.ledger, registry=registry or Untested(self.url))


@pytest.fixture
def house(mlflow_url: str, tmp_path: Path) -> House:
    client = MlflowClient(tracking_uri=mlflow_url)
    experiment = client.create_experiment(uuid.uuid4().hex)
    return House(
        store=FileStore(tmp_path / "store"),
        url=mlflow_url,
        client=client,
        experiment_id=experiment,
        mlflow_run_id=client.create_run(experiment).info.run_id,
        name=f"m{uuid.uuid4().hex}",
        folder=tmp_path,
    )


@pytest.mark.slow
def test_the_champion_loads_for_its_users_and_is_the_model_that_was_judged(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    request = house.request(1)
    promotion = house.promote(request, Registry(house.url))
    assert promotion.aliases == {"candidate": 1, "champion": 1}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", house.url)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    uri = f"models:/{house.name}@champion"
    folder = tmp_path / "downloaded"
    folder.mkdir()
    classifier = mlflow.transformers.load_model(uri, dst_path=str(folder))
    assert classifier(["the plot is thin"])[0]["label"] in ("negative", "positive")
    assert describe_tree(folder / "model").sha256 == request.artifact.sha256
    assert AutoModelForSequenceClassification.from_pretrained(folder / "model").config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(folder / "model")("the plot")["input_ids"]
    assert mlflow.pyfunc.load_model(uri).predict(["the plot"])["label"].item() in ("negative", "positive")
    source = RegistrySource(uri=uri)
    fetched = fetch_source(source, tmp_path / "sources")
    assert describe_tree(fetched).sha256 == request.artifact.sha256
    assert fetch_source(source, tmp_path / "sources") == fetched
    by_number = RegistrySource(uri=f"models:/{house.name}/1")
    assert fingerprint_source(by_number) == fingerprint_source(source)
    with pytest.raises(ConfigurationError, match="can't be had"):
        fetch_source(RegistrySource(uri=f"models:/{house.name}@nobody"), tmp_path / "sources")
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".bin", ".pt", ".py"}


@pytest.mark.slow
def test_a_model_that_does_not_load_is_not_promoted(house: House) -> None:
    request = house.request(1)
    weights = request.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(IntegrityError, match="does not load back"):
        house.promote(request, Registry(house.url))
    assert house.ledger.head() is None
    assert "champion" not in Registry(house.url).aliases(house.name)


@pytest.mark.slow
def test_files_that_changed_on_their_way_are_not_promoted(house: House) -> None:
    request = house.request(1)
    (request.folder / "extra.txt").write_text("added after the evaluation")
    with pytest.raises(IntegrityError, match="other files than were evaluated"):
        house.promote(request, Registry(house.url))
    assert house.ledger.head() is None


def test_the_old_champion_becomes_previous(house: House) -> None:
    first, second = house.promote(house.request(1)), house.promote(house.request(2))
    assert (first.version, first.champion_before) == (1, None)
    assert (second.version, second.champion_before) == (2, 1)
    assert second.aliases == {"candidate": 2, "champion": 2, "previous": 1}
    entries = house.ledger.verify().actions
    assert [entry.registered_version for entry in entries] == [1, 2]
    tags = house.client.get_model_version(house.name, "2").tags
    assert tags["stillhouse.model_sha256"] == entries[1].artifact.sha256
    assert tags["stillhouse.ledger_sha256"] == entries[1].digest == second.ledger_sha256
    outcomes = house.ledger.verify().outcomes
    assert [outcomes[entry.sequence].status for entry in entries] == ["done", "done"]
    assert outcomes[second.ledger_sequence].aliases == second.aliases


def test_promoting_the_champion_again_changes_nothing(house: House) -> None:
    house.promote(house.request(1))
    request = house.request(2)
    before = house.promote(request)
    for again in (request, house.request(2)):  # the same request, and a new run that made the same model
        after = house.promote(again)
        assert after.already_champion
        assert after == Promotion.model_validate({**before.model_dump(), "already_champion": True})
    assert len(house.ledger.verify().actions) == 2
    assert len(house.client.search_model_versions(f"name = '{house.name}'")) == 2


@pytest.mark.parametrize("step", ["_log", "_create_version", "_sign"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_registration_killed_at_any_step_is_finished_by_the_next_try(house: House, step: str, moment: str) -> None:
    """What follows on a registration is killed at every step in test_killed.py."""
    house.promote(house.request(1))
    request = house.request(2)

    class Dying(Untested):
        def __getattribute__(self, name: str) -> object:
            found = super().__getattribute__(name)
            if name != step:
                return found

            def call(*args: object, **kwargs: object) -> None:
                if moment == "after":
                    found(*args, **kwargs)
                raise Killed

            return call

    with pytest.raises(Killed):
        house.promote(request, Dying(house.url))
    promotion = house.promote(request)
    assert promotion.aliases == {"candidate": 2, "champion": 2, "previous": 1}
    assert promotion.champion_before == 1
    assert [entry.registered_version for entry in house.ledger.verify().actions] == [1, 2]
    assert len(house.client.search_model_versions(f"name = '{house.name}'")) == 2
    assert len(house.client.search_logged_models([house.experiment_id])) == 2


def test_of_two_candidates_judged_against_the_same_champion_one_is_told(house: House) -> None:
    house.promote(house.request(1))
    first, second = house.request(2), house.request(3)
    house.promote(first)
    with pytest.raises(Conflict, match="another champion than the candidate was compared with"):
        house.promote(second)
    assert Registry(house.url).aliases(house.name)["champion"] == 2


def test_the_loser_of_a_race_to_the_ledger_moves_no_alias(house: House) -> None:
    loser, winner = house.request(1), house.request(2)

    class Overtaken(Untested):
        def load_back(self, model_name: str, version: int, sha256: str) -> None:
            house.promote(winner)

    with pytest.raises(Conflict, match="another promotion or rollback was first"):
        house.promote(loser, Overtaken(house.url))
    head = house.ledger.head()
    assert head is not None
    assert head.artifact.sha256 == winner.artifact.sha256
    assert Registry(house.url).aliases(house.name)["champion"] == head.registered_version


@pytest.mark.parametrize("verdict", ["reject", "inconclusive"])
def test_nothing_but_a_promoting_verdict_promotes(house: House, verdict: str) -> None:
    with pytest.raises(NotPermitted, match=f"the verdict is '{verdict}'"):
        house.promote(house.request(1, verdict=verdict))
    assert house.ledger.head() is None


def test_an_approval_holds_for_one_decision(house: House) -> None:
    request = house.request(1)
    other = request.approval.model_copy(update={"decision_sha256": "0" * 64})
    with pytest.raises(NotPermitted, match="approval is for another decision"):
        house.promote(replace(request, approval=other))
    assert house.ledger.head() is None


@pytest.mark.parametrize(("triggered_by", "permitted"), [("ada", True), ("bob", False), (" Bob", False), (None, True)])
def test_two_persons_are_two(house: House, triggered_by: str | None, permitted: bool) -> None:
    request = house.request(1)
    approval = Approval.model_validate(
        request.approval.model_dump() | {"mode": "two-person", "who": "bob", "triggered_by": triggered_by}
    )
    if permitted:
        house.promote(replace(request, approval=approval))
        head = house.ledger.head()
        assert head is not None
        assert head.approval.triggered_by == triggered_by
    else:
        with pytest.raises(NotPermitted, match="two persons are needed"):
            house.promote(replace(request, approval=approval))
        assert house.ledger.head() is None


def test_a_decision_holds_for_one_model(house: House) -> None:
    with pytest.raises(IntegrityError, match="about another model"):
        house.promote(house.request(1, model_sha256="3" * 64))


def test_a_changed_ledger_stops_promotions(house: House) -> None:
    house.promote(house.request(1))
    house.promote(house.request(2))
    key = f"ledger/{house.name}/00000003.json"
    house.store.put(key, house.store.get(key).replace(b"run-2", b"run-7"))
    with pytest.raises(IntegrityError, match="entry 4 does not follow"):
        house.promote(house.request(3))


def test_a_lost_registry_is_filled_again_from_the_ledger(house: House) -> None:
    house.promote(house.request(1))
    second = house.request(2)
    house.promote(second)
    house.client.delete_registered_model(house.name)
    promotion = house.promote(second)
    assert (promotion.version, promotion.champion_before) == (1, None)
    assert promotion.aliases["champion"] == 1
    assert len(house.ledger.verify().actions) == 2


def test_an_absent_server_is_told_within_seconds(house: House) -> None:
    request = house.request(1)
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    start = time.monotonic()
    with pytest.raises(TryAgain, match=f"MLflow at {url} does not answer"):
        house.promote(request, Registry(url))
    assert time.monotonic() - start < 10
    assert house.ledger.head() is None


def test_the_light_rooms_bring_no_mlflow() -> None:
    code = "import sys, stillhouse.promotion; sys.exit(any(m in sys.modules for m in ('mlflow', 'torch', 'boto3')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
