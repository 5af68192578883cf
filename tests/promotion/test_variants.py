"""Variants: packages that only their own loaders read, and versions beside the champion that no alias leads to."""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow.onnx
import numpy as np
import onnxruntime
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tiny import LABELS, write_teacher
from tiny_onnx import votes, write_onnx

from stillhouse.contract import (
    Artifact,
    ConfigurationError,
    Decision,
    Estimate,
    IntegrityError,
    ModelSize,
    StepReport,
    StillhouseError,
)
from stillhouse.models import load_model, load_tokenizer, predict, save_model
from stillhouse.models.factored import install_factors
from stillhouse.promotion import Approval, Ledger
from stillhouse.promotion.loadback import load_back
from stillhouse.promotion.packaging import check_package, form_of, package_model
from stillhouse.promotion.promote import PromotionRequest, promote_model
from stillhouse.promotion.registry import DIGEST_TAG, Registry
from stillhouse.promotion.signing import SIGNING_KEY, SigningKeys, generate_key
from stillhouse.promotion.variants import Variant, register_variants
from stillhouse.promotion.verify import verify_model
from stillhouse.recipe import Form
from stillhouse.store import FileStore, describe_tree, fetch_artifact, save_tree


def write_low_rank(folder: Path) -> Path:
    plain = write_teacher(folder / "plain", layers=1)
    model = load_model(plain, task="text-classification", labels=LABELS)
    install_factors(model, {"bert.encoder.layer.0.intermediate.dense": 8})
    for name, parameter in model.named_parameters():
        if ".up." in name or ".down." in name:
            parameter.detach().fill_(0.01)
    save_model(model, load_tokenizer(plain), folder / "low-rank")
    return folder / "low-rank"


WRITERS: dict[Form, Callable[[Path], Path]] = {
    "onnx": lambda folder: write_onnx(folder / "onnx"),
    "low-rank": write_low_rank,
}


@pytest.fixture(params=WRITERS)
def form(request: pytest.FixtureRequest) -> Form:
    found: Form = request.param
    return found


def package_of(form: Form, folder: Path) -> Path:
    package_model(WRITERS[form](folder), folder / "package", model_id="m-1")
    return folder / "package"


def test_a_package_loads_back_and_its_digest_is_the_folders(form: Form, tmp_path: Path) -> None:
    package = package_of(form, tmp_path)
    check_package(package)
    proof = load_back(str(package))
    assert form_of(package / "model") == form
    assert proof["sha256"] == describe_tree(tmp_path / form).sha256
    assert proof["label"] in proof["labels"] == list(LABELS)
    assert not (package / "components").exists()


def test_a_low_rank_package_names_what_reads_it_and_mlflow_runs_nothing(tmp_path: Path) -> None:
    package = package_of("low-rank", tmp_path)
    assert set(yaml.safe_load((package / "MLmodel").read_text())["flavors"]) == {"stillhouse"}
    with pytest.raises(MlflowException, match=r"python_function|pyfunc"):
        mlflow.pyfunc.load_model(str(package))


def test_an_onnx_package_pins_what_runs_it_and_says_what_goes_in_and_out(tmp_path: Path) -> None:
    package = package_of("onnx", tmp_path)
    names = [line.partition("==")[0] for line in (package / "requirements.txt").read_text().splitlines()]
    assert names == ["onnxruntime", "onnx", "numpy"]
    signature = mlflow.models.Model.load(str(package)).signature
    assert [column.name for column in signature.inputs] == ["input_ids", "attention_mask"]
    assert [column.name for column in signature.outputs] == ["logits"]


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.is_file() else "") + text)

    return change


def settings(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def rewrite(package: Path) -> None:
        found = yaml.safe_load((package / "MLmodel").read_text())
        change(found["flavors"])
        (package / "MLmodel").write_text(yaml.safe_dump(found))

    return rewrite


def copy_tokenizer(package: Path) -> None:
    (package / "components/tokenizer").mkdir(parents=True)
    (package / "components/tokenizer/tokenizer.json").write_bytes((package / "model/tokenizer.json").read_bytes())


def damage(package: Path) -> None:
    weights = next(path for path in (package / "model").iterdir() if path.suffix in (".onnx", ".safetensors"))
    weights.unlink()


CHANGES: dict[str, Callable[[Path], None]] = {
    "code in the model": append("model/modeling.py", "x"),
    "code beside the model": append("code/evil.py", "x"),
    "pickled weights": append("model/pytorch_model.bin", "x"),
    "added requirement": append("requirements.txt", "torchao==0.18.0\n"),
    "another flavor": settings(lambda flavors: flavors.update(python_function={"loader_module": "os"})),
    "own code": settings(lambda flavors: next(iter(flavors.values())).update(code="code")),
    "another place": settings(lambda flavors: next(iter(flavors.values())).update(data="elsewhere")),
    "a tokenizer that nothing reads": copy_tokenizer,
    "no weights": damage,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_package_that_is_more_or_less_than_was_written_is_refused(form: Form, change: str, tmp_path: Path) -> None:
    package = package_of(form, tmp_path)
    check_package(package)
    CHANGES[change](package)
    with pytest.raises(StillhouseError) as caught:
        check_package(package)
    assert isinstance(caught.value, IntegrityError | ConfigurationError)


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    package = package_of("onnx", tmp_path)
    (package / "model" / "model.onnx").write_bytes(b"\xff" * 99)
    with pytest.raises(ConfigurationError, match="no readable ONNX model"):
        check_package(package)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A registered model with a champion, and what is to be registered beside it."""

    url: str
    name: str
    run_id: str
    store: FileStore
    champion: Artifact
    keys: SigningKeys
    variants: tuple[Variant, ...]

    def register(self) -> dict[str, int]:
        return register_variants(
            Registry(self.url, self.keys),
            self.name,
            self.variants,
            champion_sha256=self.champion.sha256,
            tags={"stillhouse.recipe": "toy"},
            mlflow_run_id=self.run_id,
        )


def report(name: str, form: Form) -> StepReport:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.01, high=value + 0.01, standard_error=0.005, n=100)

    size = ModelSize(parameters=88, num_bytes=500)
    return StepReport(
        name=name,
        kind="export" if form == "onnx" else "low-rank",
        form=form,
        before="kd",
        did="made",
        rounds=1,
        position=1,
        metric="accuracy",
        score_before=estimate(0.9),
        score=estimate(0.89),
        drop=estimate(0.01),
        max_drop=0.05,
        size_before=size,
        size=size,
        kept=True,
        reason="good enough",
    )


def promotion(name: str, artifact: Artifact, folder: Path, run_id: str) -> PromotionRequest:
    decision = Decision(
        verdict="promote",
        candidate="kd",
        model_sha256=artifact.sha256,
        champion_sha256=None,
        policy="strict",
        policy_sha256="1" * 64,
        evidence_sha256="2" * 64,
        rules=(),
    )
    return PromotionRequest(
        model=name,
        artifact=artifact,
        folder=folder,
        decision=decision,
        approval=Approval(mode="auto", who="toy", when=datetime.now(UTC), decision_sha256=decision.digest),
        run_id="run-1",
        mlflow_run_id=run_id,
        tags={},
    )


@pytest.fixture
def place(mlflow_url: str, tmp_path: Path) -> Place:
    client = MlflowClient(tracking_uri=mlflow_url)
    store = FileStore(tmp_path / "store")

    def stored(folder: Path) -> tuple[Artifact, Path]:
        artifact = save_tree(store, folder.name, folder)
        return artifact, fetch_artifact(artifact, tmp_path / "cache")

    variants = []
    for form, write in WRITERS.items():
        artifact, folder = stored(write(tmp_path / "made"))
        variants.append(Variant(step=report(f"as-{form}", form), artifact=artifact, folder=folder))
    champion, folder = stored(write_teacher(tmp_path / "champion", layers=1))
    generate_key(tmp_path / "key.pem")
    keys = SigningKeys.from_environment({SIGNING_KEY: str(tmp_path / "key.pem")})
    assert keys is not None
    name = f"m{uuid.uuid4().hex}"
    run_id = client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id
    registry = Registry(mlflow_url, keys)
    promote_model(promotion(name, champion, folder, run_id), ledger=Ledger(store, name), registry=registry)
    return Place(
        url=mlflow_url, name=name, run_id=run_id, store=store, champion=champion, keys=keys, variants=tuple(variants)
    )


@pytest.mark.slow
def test_variants_are_versions_beside_the_champion_that_no_alias_leads_to(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = place.register()
    assert versions == {"as-onnx": 2, "as-low-rank": 3}
    registry = Registry(place.url, place.keys)
    assert set(registry.aliases(place.name).values()) == {1}
    tags = registry.tags(place.name, 2)
    assert tags[DIGEST_TAG] == place.variants[0].artifact.sha256
    assert (
        tags
        | {
            "stillhouse.variant": "as-onnx",
            "stillhouse.form": "onnx",
            "stillhouse.variant_of": place.champion.sha256,
            "stillhouse.validation_score": "accuracy 0.8900 (0.8800 to 0.9000, n = 100)",
            "stillhouse.bytes": "500",
            "stillhouse.parameters": "88",
            "stillhouse.recipe": "toy",
        }
        == tags
    )
    assert place.register() == versions
    assert len(MlflowClient(tracking_uri=place.url).search_model_versions(f"name = '{place.name}'")) == 3
    for version in versions.values():
        checks = verify_model(
            f"models:/{place.name}/{version}",
            tracking_uri=place.url,
            public_pem=place.keys.public_pem,
            store=place.store,
        )
        outcomes = {check.subject: check.outcome for check in checks}
        assert outcomes == dict.fromkeys(("files", "manifest", "digest", "signature", "ledger"), True), checks
        assert checks[-1].detail.startswith("as a variant: promote in entry 1")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.url)
    loaded = mlflow.onnx.load_model(f"models:/{place.name}/2")
    session = onnxruntime.InferenceSession(loaded.SerializeToString(), providers=["CPUExecutionProvider"])
    folder = place.variants[0].folder
    said = predict(
        load_model(folder, task="text-classification", labels=LABELS),
        load_tokenizer(folder),
        ["a good film"],
        batch_size=1,
        max_tokens=16,
    )
    ids_BT = np.array(said.token_ids)
    (logits_BC,) = session.run(None, {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT)})
    assert np.array_equal(logits_BC, said.logits_NC)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    np.testing.assert_allclose(logits_BC[0], votes(size)[said.token_ids[0]].sum(axis=0), rtol=1e-5)


@pytest.mark.slow
def test_a_variant_of_a_model_that_was_never_promoted_does_not_verify(place: Place) -> None:
    registry = Registry(place.url, place.keys)
    register_variants(
        registry, place.name, place.variants[:1], champion_sha256="0" * 64, tags={}, mlflow_run_id=place.run_id
    )
    uri = f"models:/{place.name}/2"
    options = {"tracking_uri": place.url, "public_pem": place.keys.public_pem, "store": place.store}
    ledger = verify_model(uri, **options)[-1]
    assert (ledger.subject, ledger.outcome) == ("ledger", False)
    assert "or of what it is a variant of" in ledger.detail
    place.register()
    assert all(check.outcome for check in verify_model(uri, **options))
