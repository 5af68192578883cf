"""A model folder as an MLflow model that is data only: weights, configuration, tokenizer, and no pickle or code."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

from stillhouse.contract import IntegrityError
from stillhouse.store.trees import MANIFEST

MODEL_FOLDER = "model"
"""Holds the model's files byte for byte, so that `describe_tree` of it gives the model's digest."""

TASK = "text-classification"


def package_model(model_folder: Path, target: Path, *, model_id: str) -> None:
    """Write the MLflow model of ``model_folder`` into the new folder ``target``.

    It is written here, since ``mlflow.transformers.save_model`` either saves the weights anew, with other bytes, or,
    from a local path, fails with transformers 5 (MLflow 3.17.2 asks for a pipeline class that is now named lazily).

    Args:
        model_folder: ``config.json``, tokenizer and safetensors weights.
        target: Where the model is written.
        model_id: MLflow's name for the logged model.

    Raises:
        IntegrityError: The folder holds no such model.
    """
    try:
        config = json.loads((model_folder / "config.json").read_bytes())
        architecture = config["architectures"][0]
    except (OSError, ValueError, LookupError):
        raise IntegrityError(f"{model_folder}: config.json is missing or names no architecture") from None
    shutil.copytree(model_folder, target / MODEL_FOLDER)
    tokenizer = target / "components" / "tokenizer"
    shutil.copytree(model_folder, tokenizer, ignore=shutil.ignore_patterns("*.safetensors", MANIFEST))
    requirements = [f"{name}=={version(name)}" for name in ("torch", "transformers", "safetensors")]
    (target / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
    model = Model(
        model_id=model_id,
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string)]),
            outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")]),
        ),
    )
    model.add_flavor(
        "transformers",
        task=TASK,
        instance_type="TextClassificationPipeline",
        pipeline_model_type=architecture,
        model_binary=MODEL_FOLDER,
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        source_model_name=architecture,
        transformers_version=version("transformers"),
        code=None,
    )
    model.add_flavor(
        "python_function",
        loader_module="mlflow.transformers",
        python_version=python_version(),
        env={"virtualenv": "python_env.yaml"},
    )
    (target / "python_env.yaml").write_text(f"python: {python_version()}\ndependencies:\n- -r requirements.txt\n")
    model.model_size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    model.save(str(target / "MLmodel"))
