"""A model folder as an MLflow model that is data only: weights, configuration, tokenizer, and no pickle or code.

::

    model/                  the model's files byte for byte: what the digest and the signature are of
    components/tokenizer/   copies of its tokenizer's files, where ``mlflow.transformers`` looks for them, if it does
    MLmodel                 how MLflow loads it
    requirements.txt, python_env.yaml
    README.md               the model card, if there is one
    model.sig               the signature, if the deployment has a key

``mlflow.transformers`` loads what transformers reads, quantized or not, and ``mlflow.onnx`` an ONNX file. What only
`stillhouse.models.load_model` reads has an entry in Stillhouse's name, which no loader of MLflow knows.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import yaml
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

from stillhouse import __version__
from stillhouse.contract import PROMOTABLE, IntegrityError
from stillhouse.recipe import Form, Task
from stillhouse.store.trees import MANIFEST

MODEL_FOLDER = "model"
"""Holds the model's files byte for byte, so that `describe_tree` of it gives the model's digest."""
SIGNATURE_FILE = "model.sig"
CARD_FILE = "README.md"

_TOKENIZER_FOLDER = "components/tokenizer"
_LIBRARIES: dict[Form, tuple[str, ...]] = {
    "transformers": ("torch", "transformers", "safetensors"),
    "quantized": ("torch", "transformers", "safetensors", "torchao"),
    "low-rank": ("torch", "transformers", "safetensors"),
    "onnx": ("onnxruntime", "onnx", "numpy"),
}
"""What loads a model of each form."""
_VERSIONS = {
    "transformers": "transformers_version",
    "python_function": "python_version",
    "onnx": "onnx_version",
    "stillhouse": "stillhouse_version",
}
"""Where each flavor says by which version it was written."""
_QUANTIZATION = "quantization_config"
_TORCHAO_TYPES = {
    *("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "IntxWeightOnlyConfig"),
    *("PerRow", "PerGroup", "MappingType", "IntxPackingFormat", "IntxChooseQParamsAlgorithm", "torch.dtype"),
}
"""Whatever a config names as a type is looked up in torchao and called; these are what a quantized student names."""
_REQUIREMENT = re.compile(r"([\w-]+)==[\w.+!-]+")
_ENVIRONMENT = re.compile(r"python: [\d.]+\ndependencies:\n- -r requirements\.txt\n")
_OWN_FILES = {"MLmodel", "requirements.txt", "python_env.yaml"}
_OPTIONAL_FILES = {CARD_FILE, SIGNATURE_FILE, "registered_model_meta"}  # MLflow adds the last one to downloads
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".sh", ".pickle", ".joblib", ".h5", ".keras")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """How transformers and MLflow call the pipeline of a task."""

    task: str
    type: str
    outputs: Schema


_TEXT = Schema([ColSpec(DataType.string)])
PIPELINES: dict[Task, Pipeline] = {
    "text-classification": Pipeline(
        task="text-classification",
        type="TextClassificationPipeline",
        outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")]),
    ),
    "masked-lm": Pipeline(task="fill-mask", type="FillMaskPipeline", outputs=_TEXT),
    "causal-lm": Pipeline(task="text-generation", type="TextGenerationPipeline", outputs=_TEXT),
}


def package_model(model_folder: Path, target: Path, *, model_id: str, card: str | None = None) -> None:
    """Write the MLflow model of ``model_folder`` into the new folder ``target``.

    It is written here, since ``mlflow.transformers.save_model`` either saves the weights anew, with other bytes, or,
    from a local path, fails with transformers 5 (MLflow 3.17.2 asks for a pipeline class that is now named lazily).

    Args:
        model_folder: ``config.json``, tokenizer, and safetensors weights or an ONNX file.
        target: Where the model is written.
        model_id: MLflow's name for the logged model.
        card: The model card, in Markdown.

    Raises:
        IntegrityError: The folder holds no model of a task that Stillhouse knows.
    """
    _, task = _identify(model_folder)
    form = form_of(model_folder)
    shutil.copytree(model_folder, target / MODEL_FOLDER)
    if form in PROMOTABLE:
        tokenizer = target / _TOKENIZER_FOLDER
        shutil.copytree(model_folder, tokenizer, ignore=shutil.ignore_patterns("*.safetensors", MANIFEST))
    if card is not None:
        (target / CARD_FILE).write_text(card, encoding="utf-8")
    requirements = [f"{name}=={version(name)}" for name in _LIBRARIES[form]]
    (target / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
    model = Model(model_id=model_id, signature=_signature(form, task))
    for name, settings in _flavors(model_folder).items():
        model.add_flavor(name, **settings, **{_VERSIONS[name]: _written_by(name)})
    (target / "python_env.yaml").write_text(f"python: {python_version()}\ndependencies:\n- -r requirements.txt\n")
    model.model_size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    model.save(str(target / "MLmodel"))


def task_of(model_folder: Path) -> Task:
    """Return the task that the model in a folder was saved for.

    Raises:
        IntegrityError: ``config.json`` is missing, or names no architecture of a task that Stillhouse knows.
    """
    return _identify(model_folder)[1]


def form_of(model_folder: Path) -> Form:
    """Return how the model in a folder is read.

    Raises:
        IntegrityError: ``config.json`` is missing or unreadable.
    """
    from stillhouse.models.factored import RANKS  # brings torch, which takes seconds
    from stillhouse.models.onnx_folder import is_onnx_folder

    config = _config(model_folder)
    if is_onnx_folder(model_folder):
        return "onnx"
    if RANKS in config:
        return "low-rank"
    return "quantized" if _QUANTIZATION in config else "transformers"


def check_package(package: Path) -> None:
    """Refuse an MLflow model that could run code or do anything else than `package_model` makes of its ``model/``.

    The digest and the signature are of ``model/`` alone. This covers the rest: copies that differ from it, further
    files, and settings of MLflow by which other code or other packages would be loaded.

    Raises:
        IntegrityError: The message names the file.
        ConfigurationError: ``model/`` holds no plain weights; see `stillhouse.models.folders.check_model_folder`.
    """
    check_plain(package / MODEL_FOLDER)
    form = form_of(package / MODEL_FOLDER)
    for path in _files(package):
        _check_place(path.relative_to(package).as_posix(), path, package / MODEL_FOLDER, form)
    for name in sorted(_OWN_FILES):
        if not (package / name).is_file():
            raise IntegrityError(f"{name} is missing; register the model again")
    _check_requirements(package, _LIBRARIES[form])
    _check_settings(package)


def check_plain(folder: Path) -> None:
    """Refuse a model folder that holds anything but data.

    Raises:
        IntegrityError: A file could run code, or is a symbolic link, or weights are quantized in another way than
            Stillhouse does.
        ConfigurationError: It holds no plain weights; see `stillhouse.models.folders.check_model_folder` and
            `stillhouse.models.onnx_folder.check_onnx_file`.
    """
    from stillhouse.models.folders import PICKLE_SUFFIXES, check_model_folder  # brings torch, which takes seconds
    from stillhouse.models.onnx_folder import ONNX_FILE, check_onnx_file

    check_model_folder(folder)
    if form_of(folder) == "onnx":
        check_onnx_file(folder / ONNX_FILE)
    _check_quantization(_config(folder).get(_QUANTIZATION))
    for path in _files(folder):
        if path.suffix.lower() in (*PICKLE_SUFFIXES, *_CODE_SUFFIXES):
            raise IntegrityError(f"{path.relative_to(folder).as_posix()} can run code; it is not to be loaded")


def _identify(model_folder: Path) -> tuple[str, Task]:
    from stillhouse.models.folders import KINDS  # brings torch, which takes seconds

    try:
        architecture = str(_config(model_folder)["architectures"][0])
    except (LookupError, TypeError):
        raise IntegrityError(f"{model_folder}: config.json names no architecture") from None
    for task, kind in KINDS.items():
        if architecture.endswith(kind.suffixes):
            return architecture, task
    raise IntegrityError(f"{model_folder}: {architecture} is no classifier and no language model with its head")


def _config(model_folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((model_folder / "config.json").read_bytes())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise IntegrityError(f"{model_folder}: config.json is missing or no readable JSON object")
    return config


def _signature(form: Form, task: Task) -> ModelSignature:
    if form != "onnx":
        return ModelSignature(inputs=_TEXT, outputs=PIPELINES[task].outputs)
    from stillhouse.models.onnx_folder import ONNX_INPUTS, ONNX_OUTPUT

    inputs = [TensorSpec(np.dtype(np.int64), (-1, -1), name) for name in ONNX_INPUTS]
    outputs = [TensorSpec(np.dtype(np.float32), (-1, -1), ONNX_OUTPUT)]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def _written_by(flavor: str) -> str:
    match flavor:
        case "python_function":
            return python_version()
        case "stillhouse":
            return __version__
    return version(flavor)


def _flavors(model_folder: Path) -> dict[str, dict[str, Any]]:
    """Return how MLflow loads the model, but for the versions of what it was packaged with."""
    architecture, task = _identify(model_folder)
    form = form_of(model_folder)
    if form == "onnx":
        from stillhouse.models.onnx_folder import ONNX_FILE

        # Without python_function: MLflow 3.17's loader expects the file beside MLmodel.
        settings = {"providers": ["CPUExecutionProvider"], "onnx_session_options": None, "code": None}
        return {"onnx": {"data": f"{MODEL_FOLDER}/{ONNX_FILE}", **settings}}
    if form == "low-rank":
        return {"stillhouse": {"data": MODEL_FOLDER, "form": form, "task": task}}
    return {
        "transformers": {
            "task": PIPELINES[task].task,
            "instance_type": PIPELINES[task].type,
            "pipeline_model_type": architecture,
            "model_binary": MODEL_FOLDER,
            "components": ["tokenizer"],
            "tokenizer_type": "AutoTokenizer",
            "source_model_name": architecture,
            "code": None,
        },
        "python_function": {"loader_module": "mlflow.transformers", "env": {"virtualenv": "python_env.yaml"}},
    }


def _check_quantization(settings: Any) -> None:
    """Refuse another method than torchao, and other types of it than a quantized student has."""
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != "torchao":
        raise IntegrityError(f"config.json asks for weights quantized by {method}, and only torchao is loaded")
    for name in _types(settings):
        if name not in _TORCHAO_TYPES:
            raise IntegrityError(f"config.json names the type {name} of torchao; it is not to be loaded")


def _types(value: Any) -> Iterator[Any]:
    """Yield every type that a torchao config names, at any depth."""
    if isinstance(value, dict):
        if "_type" in value:
            yield value["_type"] if isinstance(value["_type"], str) else None
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            yield from _types(child)


def _check_place(name: str, path: Path, model_folder: Path, form: Form) -> None:
    folder, _, rest = name.partition("/")
    if folder == MODEL_FOLDER or name in _OWN_FILES | _OPTIONAL_FILES:
        return
    own = model_folder / name.removeprefix(f"{_TOKENIZER_FOLDER}/")
    is_copy = form in PROMOTABLE and name.startswith(f"{_TOKENIZER_FOLDER}/")
    if not rest or not is_copy or not own.is_file():
        raise IntegrityError(f"{name} does not belong into the package; it is not to be loaded")
    if own.read_bytes() != path.read_bytes():
        raise IntegrityError(f"{name} differs from the model's own file; it is not to be loaded")


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise IntegrityError(f"{path.relative_to(folder).as_posix()} is a symbolic link; it is not to be loaded")
        if path.is_file():
            yield path


def _check_requirements(package: Path, libraries: Sequence[str]) -> None:
    """Refuse other packages: serving a model with an environment of its own installs what these files name."""
    lines = (package / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [_REQUIREMENT.fullmatch(line) for line in lines]
    if [found and found.group(1) for found in pinned] != list(libraries):
        raise IntegrityError(f"requirements.txt names something else than pinned {', '.join(libraries)}")
    if not _ENVIRONMENT.fullmatch((package / "python_env.yaml").read_text(encoding="utf-8")):
        raise IntegrityError("python_env.yaml names more than a Python version and requirements.txt")


def _check_settings(package: Path) -> None:
    """Compare what decides how MLflow loads the model with what `package_model` writes."""
    try:
        settings = yaml.safe_load((package / "MLmodel").read_text(encoding="utf-8"))
        flavors: Mapping[str, Mapping[str, Any]] = settings["flavors"]
        found = {name: dict(flavors[name]) for name in flavors}
        for name, flavor in found.items():
            flavor.pop(_VERSIONS.get(name, ""), None)
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        raise IntegrityError("MLmodel can't be read; register the model again") from None
    if found != _flavors(package / MODEL_FOLDER):
        raise IntegrityError("MLmodel loads the model in another way than it was packaged; register it again")
