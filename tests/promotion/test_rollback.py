"""Rollbacks: only to what was champion, only verified, only once, and drilled against a real MLflow server."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow import MlflowClient
from promotions import FileRegistry, approved
from tiny import write_teacher

from stillhouse.contract import ConfigurationError, Decision, IntegrityError, NotPermitted
from stillhouse.promotion import Approval, Ledger
from stillhouse.promotion.ledger import RollbackEntry
from stillhouse.promotion.promote import PromotionRequest, promote_model
from stillhouse.promotion.reconcile import reconcile
from stillhouse.promotion.registry import Registry
from stillhouse.promotion.rollback import Rollback, roll_back
from stillhouse.recipe import ProductionConfig
from stillhouse.store import FileStore, fetch_artifact, save_tree


class House:
    """Models m1, m2, … promoted in turn to ``toy``, each as the version of its number."""

    def __init__(self, folder: Path, models: int = 3) -> None:
        self.store = FileStore(folder)
        self.registry = FileRegistry(folder)
        for number in range(1, models + 1):
            self.promote(f"m{number}")

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store, "toy")

    def promote(self, name: str) -> None:
        promote_model(approved("toy", name, self.ledger), ledger=self.ledger, registry=self.registry)

    def roll_back(self, target: int | None = None, reason: str = "bad on Mondays", who: str = "ada") -> Rollback:
        return roll_back("toy", ledger=self.ledger, registry=self.registry, target=target, reason=reason, who=who)

    def aliases(self) -> tuple[int | None, int | None]:
        found = self.registry.aliases("toy")
        return found.get("champion"), found.get("previous")


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_it_leads_to_the_champion_before_and_says_why(house: House) -> None:
    done = house.roll_back()
    assert (done.version, done.champion_before, done.already_done) == (2, 3, False)
    assert house.aliases() == (2, 3)
    head = house.ledger.head()
    assert isinstance(head, RollbackEntry)
    assert (head.reason, head.who, head.asked_version, head.champion_before) == ("bad on Mondays", "ada", None, 3)
    assert done.ledger_sha256 == head.digest == house.registry.tags("toy", 2)["stillhouse.ledger_sha256"]
    assert house.ledger.verify().outcomes[head.sequence].aliases == done.aliases


def test_any_champion_of_earlier_days_can_be_named(house: House) -> None:
    assert house.roll_back(target=1).version == 1
    assert house.aliases() == (1, 3)


def test_the_target_is_what_the_ledger_says_and_not_the_alias(house: House) -> None:
    house.registry.set_alias("toy", "previous", 1)
    assert house.roll_back().version == 2


def test_a_promotion_after_a_rollback_is_compared_with_the_model_that_came_back(house: House) -> None:
    house.roll_back()
    house.promote("m4")
    assert house.aliases() == (4, 2)


def test_asked_again_it_does_not_bring_the_bad_model_back(house: House) -> None:
    first = house.roll_back()
    again = house.roll_back()
    assert again == first.model_copy(update={"already_done": True})
    assert house.aliases() == (2, 3)


def test_a_second_person_in_the_same_emergency_does_not_undo_the_first(house: House) -> None:
    house.roll_back()
    with pytest.raises(ConfigurationError, match=r"rolled back already .*by ada.*name the version"):
        house.roll_back(who="bob", reason="errors everywhere")
    assert house.aliases() == (2, 3)
    assert house.roll_back(target=3, who="bob", reason="it was the network").version == 3
    assert house.aliases() == (3, 2)


def test_a_first_champion_has_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no previous champion"):
        House(tmp_path, models=1).roll_back()


def test_without_any_promotion_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no previous champion"):
        House(tmp_path, models=0).roll_back()


def test_the_champion_itself_is_no_target(house: House) -> None:
    with pytest.raises(ConfigurationError, match="version 3 of toy is the champion"):
        house.roll_back(target=3)


def test_what_was_never_champion_is_no_target(house: House) -> None:
    artifact = approved("toy", "rejected", house.ledger).artifact
    version = house.registry.register("toy", Path(), artifact, {}, mlflow_run_id="0")
    with pytest.raises(NotPermitted, match="version 4 of toy was never champion"):
        house.roll_back(target=version)


def test_what_does_not_exist_is_no_target(house: House) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        house.roll_back(target=99)


def test_a_promotion_that_was_annulled_is_no_target(house: House) -> None:
    request = approved("toy", "m4", house.ledger)
    version = house.registry.register("toy", Path(), request.artifact, {}, mlflow_run_id="0")
    entry = house.ledger.append_promotion(
        house.ledger.verify(),
        artifact=request.artifact,
        registered_version=version,
        champion_before=3,
        decision_sha256=request.decision.digest,
        run_id=request.run_id,
        approval=request.approval,
    )
    house.ledger.append_outcome(entry, failure="no")
    with pytest.raises(NotPermitted, match="version 4 of toy was never champion"):
        house.roll_back(target=version)
    assert house.roll_back().version == 2


@pytest.mark.parametrize(("reason", "who"), [("", "ada"), ("  ", "ada"), ("bad", " ")])
def test_it_needs_a_reason_and_a_name(house: House, reason: str, who: str) -> None:
    with pytest.raises(ConfigurationError, match="needs a reason"):
        house.roll_back(reason=reason, who=who)
    assert house.aliases() == (3, 2)


def test_a_target_that_does_not_load_moves_nothing(house: House) -> None:
    before = house.ledger.verify()
    house.registry.break_version("toy", 2)
    with pytest.raises(IntegrityError, match="does not load back"):
        house.roll_back()
    assert house.ledger.verify() == before
    assert house.aliases() == (3, 2)


def test_a_target_that_is_gone_moves_nothing(house: House) -> None:
    house.registry.delete_version("toy", 2)
    with pytest.raises(IntegrityError, match="version 2 of ledger entry 3 is not in the registry"):
        house.roll_back()
    assert house.aliases() == (3, None)


def test_a_changed_ledger_moves_nothing(house: House) -> None:
    key = "ledger/toy/00000003.json"
    house.store.put(key, house.store.get(key).replace(b"run-m2", b"run-m9"))
    with pytest.raises(IntegrityError, match="entry 4 does not follow"):
        house.roll_back()
    assert house.aliases() == (3, 2)


@pytest.mark.parametrize(("target", "aliases"), [(1, (1, 3)), (3, (3, 2))])
def test_an_alias_moved_by_hand_is_settled_by_a_rollback_to_either_version(
    house: House, target: int, aliases: tuple[int, int]
) -> None:
    house.registry.set_alias("toy", "champion", 1)
    assert house.roll_back(target=target, reason="settled").champion_before == 1
    assert house.aliases() == aliases
    assert reconcile("toy", ledger=house.ledger, registry=house.registry, repair=False).status == "consistent"


def test_what_can_not_be_finished_is_annulled_and_the_aliases_go_back(house: House) -> None:
    class Stubborn(FileRegistry):
        def set_alias(self, model: str, alias: str, version: int) -> None:
            if (alias, version) == ("champion", 2):
                raise NotPermitted("this alias is protected")
            super().set_alias(model, alias, version)

    with pytest.raises(NotPermitted, match="protected"):
        roll_back("toy", ledger=house.ledger, registry=Stubborn(house.store.folder), reason="bad", who="ada")
    history = house.ledger.verify()
    assert (history.open, history.head) == (None, history.actions[2])
    assert history.outcomes[7].detail == "this alias is protected"
    assert house.aliases() == (3, 2)
    assert house.roll_back().version == 2


@pytest.mark.slow
def test_drill_on_a_real_server_with_real_models(mlflow_url: str, tmp_path: Path) -> None:
    """Two models are promoted and copied to production; the second is rolled back, and so is production."""
    client = MlflowClient(tracking_uri=mlflow_url)
    name = f"m{uuid.uuid4().hex}"
    production = ProductionConfig(model=f"{name}-production")
    mlflow_run_id = client.create_run(client.create_experiment(name)).info.run_id
    store, registry = FileStore(tmp_path / "store"), Registry(mlflow_url)
    ledger = Ledger(store, name)
    digests = []
    for seed in (1, 2):
        artifact = save_tree(store, f"models/{seed}", write_teacher(tmp_path / str(seed), layers=2, seed=seed))
        decision = Decision.model_validate(
            {
                "verdict": "promote",
                "candidate": "kd",
                "model_sha256": artifact.sha256,
                "champion_sha256": digests[-1] if digests else None,
                "policy": "strict",
                "policy_sha256": "1" * 64,
                "evidence_sha256": "2" * 64,
                "rules": (),
            }
        )
        request = PromotionRequest(
            model=name,
            artifact=artifact,
            folder=fetch_artifact(artifact, tmp_path / "cache"),
            decision=decision,
            approval=Approval(mode="auto", who="toy", when=datetime.now(UTC), decision_sha256=decision.digest),
            run_id=f"run-{seed}",
            mlflow_run_id=mlflow_run_id,
            tags={},
            production=production,
        )
        promote_model(request, ledger=ledger, registry=registry)
        digests.append(artifact.sha256)

    def serving() -> list[str]:
        return [
            client.get_model_version_by_alias(model, "champion").tags["stillhouse.model_sha256"]
            for model in (name, production.model)
        ]

    assert serving() == [digests[1]] * 2
    done = roll_back(name, ledger=ledger, registry=registry, reason="drill", who="ada")
    assert done.model_sha256 == digests[0]
    assert serving() == [digests[0]] * 2
    assert reconcile(name, ledger=ledger, registry=registry, repair=False).status == "consistent"
    client.set_registered_model_alias(name, "champion", "2")
    report = reconcile(name, ledger=ledger, registry=registry, repair=True)
    assert [finding.kind for finding in report.findings] == ["champion-moved"]
