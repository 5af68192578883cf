"""Packages: what MLflow and transformers load is data, whatever its task, and anything else is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import LABELS, write_teacher
from tiny_language import tiny_causal, tiny_masked, tiny_tokenizer

from stillhouse.compression.base import Subject
from stillhouse.compression.quantize import Quantization
from stillhouse.contract import ConfigurationError, IntegrityError, StillhouseError
from stillhouse.models.folders import load_model, load_tokenizer, save_model
from stillhouse.promotion.loadback import load_back
from stillhouse.promotion.packaging import check_package, check_plain, form_of, package_model, task_of
from stillhouse.promotion.signing import SIGNING_KEY, SigningKeys, generate_key, sign_model
from stillhouse.recipe import QuantizeStep, Task
from stillhouse.store import FileStore, describe_tree, fetch_artifact, save_tree

TASKS: tuple[Task, ...] = ("text-classification", "masked-lm", "causal-lm")


def write_model(folder: Path, task: Task) -> Path:
    """A model folder as the object store gives it, with its manifest."""
    plain = folder / "plain"
    if task == "text-classification":
        write_teacher(plain, layers=1)
    elif task == "masked-lm":
        save_model(tiny_masked(), tiny_tokenizer(masked=True), plain)
    else:
        save_model(tiny_causal(), tiny_tokenizer(), plain)
    return fetch_artifact(save_tree(FileStore(folder / "store"), "model", plain), folder / "cache")


@pytest.fixture(scope="module", params=TASKS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), "text-classification")


@pytest.fixture
def package(classifier: Path, tmp_path: Path) -> Path:
    package_model(classifier, tmp_path / "package", model_id="m-1", card="# A model")
    return tmp_path / "package"


def test_every_task_loads_back_and_says_something(model: Path, tmp_path: Path) -> None:
    package_model(model, tmp_path / "package", model_id="m-1")
    check_package(tmp_path / "package")
    proof = load_back(str(tmp_path / "package"))
    assert proof["task"] == task_of(model)
    assert proof["sha256"] == describe_tree(model).sha256
    match proof["task"]:
        case "text-classification":
            assert proof["label"] in proof["labels"] == ["negative", "positive"]
        case "masked-lm":
            assert 0 < proof["score"] <= 1
        case "causal-lm":
            assert isinstance(proof["continuation"], str)


def test_every_task_loads_as_its_users_load_it(model: Path, tmp_path: Path) -> None:
    import mlflow
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

    package_model(model, tmp_path / "package", model_id="m-1", card="# A model")
    text = {"masked-lm": "the plot is [MASK]"}.get(task_of(model), "the plot")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "package"))
    assert len(loaded.predict([text])) == 1
    auto = {
        "text-classification": AutoModelForSequenceClassification,
        "masked-lm": AutoModelForMaskedLM,
        "causal-lm": AutoModelForCausalLM,
    }[task_of(model)]
    assert auto.from_pretrained(tmp_path / "package" / "model").num_parameters() > 0
    assert (tmp_path / "package" / "README.md").read_text() == "# A model"
    assert describe_tree(tmp_path / "package" / "model").sha256 == describe_tree(model).sha256


@pytest.mark.slow
def test_a_fresh_process_proves_it_and_wants_the_signature(package: Path, tmp_path: Path) -> None:
    def prove(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stillhouse.promotion.loadback", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    generate_key(tmp_path / "key.pem")
    keys = SigningKeys.from_environment({SIGNING_KEY: str(tmp_path / "key.pem")})
    assert keys is not None
    assert keys.private_key
    unsigned = prove(keys.public_pem.decode())
    assert unsigned.returncode
    assert "the model is not signed" in unsigned.stderr.splitlines()[-1]
    sign_model(package / "model", keys.private_key, package / "model.sig")
    signed = prove(keys.public_pem.decode())
    assert json.loads(signed.stdout.splitlines()[-1])["sha256"] == describe_tree(package / "model").sha256


@pytest.mark.parametrize("task", TASKS)
def test_weights_that_are_not_finite_prove_nothing(task: Task, tmp_path: Path) -> None:
    model = write_model(tmp_path, task)
    package_model(model, tmp_path / "package", model_id="m-1")
    weights = tmp_path / "package" / "model" / "model.safetensors"
    tensors = {name: tensor.fill_(float("nan")) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"prediction|score|not finite"):
        load_back(str(tmp_path / "package"))


def append(name: str, text: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.is_file() else "") + text)

    return change


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(package: Path) -> None:
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda package: (package / name).unlink()


def link(package: Path) -> None:
    (package / "model" / "link.json").symlink_to(package / "model" / "config.json")


CHANGES: dict[str, Callable[[Path], None]] = {
    "code beside the model": append("code/evil.py", "x"),
    "code in the model": append("model/modeling.py", "x"),
    "pickled weights": append("model/pytorch_model.bin", "x"),
    "pickled settings": append("model/training_args.pkl", "x"),
    "another file": append("extra.txt", "x"),
    "another component": append("components/feature_extractor/config.json", "{}"),
    "changed copy of the tokenizer": append("components/tokenizer/tokenizer.json", " "),
    "added file of the tokenizer": append("components/tokenizer/added.json", "{}"),
    "added requirement": append("requirements.txt", "evil==1.0\n"),
    "other index": append("requirements.txt", "--index-url https://example.org\n"),
    "unpinned requirement": replace("requirements.txt", "==", ">="),
    "added dependency": append("python_env.yaml", "- evil\n"),
    "other loader": replace("MLmodel", "loader_module: mlflow.transformers", "loader_module: os"),
    "own code": replace("MLmodel", "code: null", "code: code"),
    "other task": replace("MLmodel", "task: text-classification", "task: text-generation"),
    "other weights": replace("MLmodel", "model_binary: model", "source_model_revision: main"),
    "further flavor": replace("MLmodel", "flavors:", "flavors:\n  sklearn: {pickled_model: x}"),
    "unreadable settings": append("MLmodel", "\n\t{"),
    "no settings": remove("MLmodel"),
    "no requirements": remove("requirements.txt"),
    "no weights": remove("model/model.safetensors"),
    "remote code": replace("model/config.json", "{", '{"auto_map": {"AutoModel": "evil.Model"},'),
    "link": link,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_package_that_is_more_or_less_than_data_is_refused(package: Path, change: str) -> None:
    check_package(package)
    CHANGES[change](package)
    with pytest.raises(StillhouseError) as caught:
        check_package(package)
    assert isinstance(caught.value, IntegrityError | ConfigurationError)


def test_nothing_is_loaded_from_a_package_that_is_refused(package: Path) -> None:
    append("model/pytorch_model.bin", "x")(package)
    with pytest.raises(IntegrityError, match="can run code"):
        load_back(str(package))


@pytest.fixture(scope="module", params=["int8", "int8-dynamic", "int4"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    write_teacher(folder / "plain", layers=1)
    subject = Subject(
        model=load_model(folder / "plain", task="text-classification", labels=LABELS),
        tokenizer=load_tokenizer(folder / "plain"),
        task="text-classification",
        labels=LABELS,
    )
    Quantization(QuantizeStep(name="small", scheme=request.param)).write(subject, folder / "quantized")
    return folder / "quantized"


def test_a_quantized_model_loads_as_its_users_load_it_and_stays_quantized(quantized: Path, tmp_path: Path) -> None:
    import mlflow

    package = tmp_path / "package"
    package_model(quantized, package, model_id="m-1")
    check_package(package)
    assert form_of(quantized) == "quantized"
    assert [line.partition("==")[0] for line in (package / "requirements.txt").read_text().splitlines()] == [
        *("torch", "transformers", "safetensors", "torchao")
    ]
    assert load_back(str(package))["label"] in LABELS
    loaded = mlflow.transformers.load_model(str(package)).model
    weight = loaded.bert.encoder.layer[0].intermediate.dense.weight
    assert type(weight).__module__.startswith("torchao")
    ids = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    expected = load_model(quantized, task="text-classification", labels=LABELS)(**ids).logits
    torch.testing.assert_close(loaded(**ids).logits, expected)


def change_config(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = package / "model" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "quantized by bitsandbytes"),
        ({"quant_method": None}, "quantized by None"),
        ("gptq", "quantized by gptq"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "quantize_", "_data": {}}}}, "type quantize_"),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "PerRow", "_data": [{"_type": 1}]}}},
            "type None",
        ),
    ],
)
def test_weights_that_are_quantized_in_another_way_are_refused(package: Path, settings: object, reason: str) -> None:
    change_config(package, lambda config: config.update(quantization_config=settings))
    for refuse, folder in ((check_package, package), (check_plain, package / "model")):
        with pytest.raises(IntegrityError, match=reason):
            refuse(folder)


def test_what_mlflow_adds_to_downloads_is_no_harm(package: Path) -> None:
    append("registered_model_meta", "model_name: x")(package)
    check_package(package)


@pytest.mark.parametrize("architectures", [None, [], ["BertModel"], "BertForMaskedLM"])
def test_a_folder_of_no_known_task_is_not_packaged(tmp_path: Path, architectures: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": architectures}))
    with pytest.raises(IntegrityError, match=r"config\.json names no|no classifier and no language model"):
        package_model(folder, tmp_path / "package", model_id="m-1")


def test_a_plain_folder_is_judged_like_a_package(classifier: Path, tmp_path: Path) -> None:
    check_plain(classifier)
    folder = write_teacher(tmp_path / "model", layers=1)
    (folder / "tokenizer.PICKLE").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"tokenizer\.PICKLE can run code"):
        check_plain(folder)
