"""A model folder as an MLflow model that is data only: weights, configuration, tokenizer, and no pickle or code.

::

    model/                  the model's files byte for byte: what the digest and the signature are of
    components/tokenizer/   copies of its tokenizer's files, where ``mlflow.transformers`` looks for them
    MLmodel                 how MLflow loads it
    requirements.txt, python_env.yaml
    README.md               the model card, if there is one
    model.sig               the signature, if the deployment has a key
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import yaml
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

from stillhouse.contract import IntegrityError
from stillhouse.recipe import Task
from stillhouse.store.trees import MANIFEST

MODEL_FOLDER = "model"
"""Holds the model's files byte for byte, so that `describe_tree` of it gives the model's digest."""
SIGNATURE_FILE = "model.sig"
CARD_FILE = "README.md"

_TOKENIZER_FOLDER = "components/tokenizer"
_LIBRARIES = ("torch", "transformers", "safetensors")
_REQUIREMENT = re.compile(rf"({'|'.join(_LIBRARIES)})==[\w.+!-]+")
_ENVIRONMENT = re.compile(r"python: [\d.]+\ndependencies:\n- -r requirements\.txt\n")
_OWN_FILES = {"MLmodel", "requirements.txt", "python_env.yaml"}
_OPTIONAL_FILES = {CARD_FILE, SIGNATURE_FILE, "registered_model_meta"}  # MLflow adds the last one to downloads
_CODE_SUFFIXES = (".py", ".pyc", ".so", ".sh", ".pickle", ".joblib", ".h5", ".keras")


@dataclass(frozen=True, kw_only=True)
class _Pipeline:
    """How transformers and MLflow call the pipeline of a task."""

    task: str
    type: str
    outputs: Schema


_TEXT = Schema([ColSpec(DataType.string)])
_PIPELINES: dict[Task, _Pipeline] = {
    "text-classification": _Pipeline(
        task="text-classification",
        type="TextClassificationPipeline",
        outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")]),
    ),
    "masked-lm": _Pipeline(task="fill-mask", type="FillMaskPipeline", outputs=_TEXT),
    "causal-lm": _Pipeline(task="text-generation", type="TextGenerationPipeline", outputs=_TEXT),
}


def package_model(model_folder: Path, target: Path, *, model_id: str, card: str | None = None) -> None:
    """Write the MLflow model of ``model_folder`` into the new folder ``target``.

    It is written here, since ``mlflow.transformers.save_model`` either saves the weights anew, with other bytes, or,
    from a local path, fails with transformers 5 (MLflow 3.17.2 asks for a pipeline class that is now named lazily).

    Args:
        model_folder: ``config.json``, tokenizer and safetensors weights.
        target: Where the model is written.
        model_id: MLflow's name for the logged model.
        card: The model card, in Markdown.

    Raises:
        IntegrityError: The folder holds no model of a task that Stillhouse knows.
    """
    architecture, task = _identify(model_folder)
    shutil.copytree(model_folder, target / MODEL_FOLDER)
    tokenizer = target / _TOKENIZER_FOLDER
    shutil.copytree(model_folder, tokenizer, ignore=shutil.ignore_patterns("*.safetensors", MANIFEST))
    if card is not None:
        (target / CARD_FILE).write_text(card, encoding="utf-8")
    requirements = [f"{name}=={version(name)}" for name in _LIBRARIES]
    (target / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
    model = Model(model_id=model_id, signature=ModelSignature(inputs=_TEXT, outputs=_PIPELINES[task].outputs))
    own = {
        "transformers": {"transformers_version": version("transformers")},
        "python_function": {"python_version": python_version()},
    }
    for name, settings in _flavors(architecture, task).items():
        model.add_flavor(name, **settings, **own[name])
    (target / "python_env.yaml").write_text(f"python: {python_version()}\ndependencies:\n- -r requirements.txt\n")
    model.model_size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    model.save(str(target / "MLmodel"))


def task_of(model_folder: Path) -> Task:
    """Return the task that the model in a folder was saved for.

    Raises:
        IntegrityError: ``config.json`` is missing, or names no architecture of a task that Stillhouse knows.
    """
    return _identify(model_folder)[1]


def check_package(package: Path) -> None:
    """Refuse an MLflow model that could run code or do anything else than `package_model` makes of its ``model/``.

    The digest and the signature are of ``model/`` alone. This covers the rest: copies that differ from it, further
    files, and settings of MLflow by which other code or other packages would be loaded.

    Raises:
        IntegrityError: The message names the file.
        ConfigurationError: ``model/`` holds no plain weights; see `stillhouse.models.folders.check_model_folder`.
    """
    check_plain(package / MODEL_FOLDER)
    for path in _files(package):
        _check_place(path.relative_to(package).as_posix(), path, package / MODEL_FOLDER)
    for name in sorted(_OWN_FILES):
        if not (package / name).is_file():
            raise IntegrityError(f"{name} is missing; register the model again")
    _check_requirements(package)
    _check_settings(package)


def check_plain(folder: Path) -> None:
    """Refuse a model folder that holds anything but data.

    Raises:
        IntegrityError: A file could run code, or is a symbolic link.
        ConfigurationError: It holds no plain weights; see `stillhouse.models.folders.check_model_folder`.
    """
    from stillhouse.models.folders import PICKLE_SUFFIXES, check_model_folder  # brings torch, which takes seconds

    check_model_folder(folder)
    for path in _files(folder):
        if path.suffix.lower() in (*PICKLE_SUFFIXES, *_CODE_SUFFIXES):
            raise IntegrityError(f"{path.relative_to(folder).as_posix()} can run code; it is not to be loaded")


def _identify(model_folder: Path) -> tuple[str, Task]:
    from stillhouse.models.folders import KINDS  # brings torch, which takes seconds

    try:
        architecture = str(json.loads((model_folder / "config.json").read_bytes())["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError):
        raise IntegrityError(f"{model_folder}: config.json is missing or names no architecture") from None
    for task, kind in KINDS.items():
        if architecture.endswith(kind.suffixes):
            return architecture, task
    raise IntegrityError(f"{model_folder}: {architecture} is no classifier and no language model with its head")


def _flavors(architecture: str, task: Task) -> dict[str, dict[str, Any]]:
    """Return how MLflow loads the model, but for the versions of what it was packaged with."""
    return {
        "transformers": {
            "task": _PIPELINES[task].task,
            "instance_type": _PIPELINES[task].type,
            "pipeline_model_type": architecture,
            "model_binary": MODEL_FOLDER,
            "components": ["tokenizer"],
            "tokenizer_type": "AutoTokenizer",
            "source_model_name": architecture,
            "code": None,
        },
        "python_function": {"loader_module": "mlflow.transformers", "env": {"virtualenv": "python_env.yaml"}},
    }


def _check_place(name: str, path: Path, model_folder: Path) -> None:
    folder, _, rest = name.partition("/")
    if folder == MODEL_FOLDER or name in _OWN_FILES | _OPTIONAL_FILES:
        return
    own = model_folder / name.removeprefix(f"{_TOKENIZER_FOLDER}/")
    if not rest or not name.startswith(f"{_TOKENIZER_FOLDER}/") or not own.is_file():
        raise IntegrityError(f"{name} does not belong into the package; it is not to be loaded")
    if own.read_bytes() != path.read_bytes():
        raise IntegrityError(f"{name} differs from the model's own file; it is not to be loaded")


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise IntegrityError(f"{path.relative_to(folder).as_posix()} is a symbolic link; it is not to be loaded")
        if path.is_file():
            yield path


def _check_requirements(package: Path) -> None:
    """Refuse other packages: serving a model with an environment of its own installs what these files name."""
    lines = (package / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if not all(_REQUIREMENT.fullmatch(line) for line in lines):
        raise IntegrityError(f"requirements.txt names more than pinned {', '.join(_LIBRARIES)}")
    if not _ENVIRONMENT.fullmatch((package / "python_env.yaml").read_text(encoding="utf-8")):
        raise IntegrityError("python_env.yaml names more than a Python version and requirements.txt")


def _check_settings(package: Path) -> None:
    """Compare what decides how MLflow loads the model with what `package_model` writes."""
    architecture, task = _identify(package / MODEL_FOLDER)
    try:
        settings = yaml.safe_load((package / "MLmodel").read_text(encoding="utf-8"))
        flavors: Mapping[str, Mapping[str, Any]] = settings["flavors"]
        found = {name: dict(flavors[name]) for name in flavors}
        for name, key in (("transformers", "transformers_version"), ("python_function", "python_version")):
            found[name].pop(key, None)
    except (ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
        raise IntegrityError("MLmodel can't be read; register the model again") from None
    if found != _flavors(architecture, task):
        raise IntegrityError("MLmodel loads the model in another way than it was packaged; register it again")
