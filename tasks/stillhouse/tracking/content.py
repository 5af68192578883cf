"""What of a recipe and of a result is shown in MLflow, and under which names."""

import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE, MAX_PARAM_VAL_LENGTH

from stillhouse.contract import Artifact, StageResult
from stillhouse.recipe import Recipe


def recipe_params(recipe: Recipe) -> dict[str, str]:
    """Return the recipe as flat parameters with dotted names, such as ``distillation.alpha``; unset fields left out."""
    return dict(sorted(_flatten(recipe.model_dump(mode="json"), "")))


def _flatten(node: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(node, dict):
        return [item for key, value in node.items() for item in _flatten(value, f"{name}.{key}" if name else key)]
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        return [item for i, value in enumerate(node) for item in _flatten(value, f"{name}.{i}")]
    if node is None or node == []:
        return []
    text = ", ".join(map(str, node)) if isinstance(node, list) else str(node)
    return [(name, text if len(text) <= MAX_PARAM_VAL_LENGTH else f"{text[: MAX_PARAM_VAL_LENGTH - 1]}…")]


def result_metrics(result: StageResult) -> dict[str, float]:
    """Return the result's own figures, and under ``task/`` what they cost."""
    cost = {
        "task/seconds": result.seconds,
        "task/cpu_seconds": result.cpu_seconds,
        "task/peak_memory_mib": result.peak_memory_bytes / 2**20,
        "task/device_seconds": result.device_seconds,
    }
    if result.cost is not None:
        cost["task/cost"] = result.cost
    return {**result.metrics, **cost}


def result_tags(result: StageResult) -> dict[str, str]:
    """Return the digests that pin the result, and its summary as the run's description."""
    tags = {
        "mlflow.note.content": result.summary,
        "stillhouse.key": result.key,
        "stillhouse.code_version": result.code_version,
    }
    if result.image_digest:
        tags["stillhouse.image_digest"] = result.image_digest
    for kind, artifacts in (("input", result.inputs), ("output", result.outputs)):
        tags |= {f"stillhouse.{kind}.{name}": artifact.sha256 for name, artifact in artifacts.items()}
    return tags


def result_datasets(result: StageResult) -> list[DatasetInput]:
    """Return the frozen tables that the stage read, or, of ``validate``, the ones that it froze."""
    artifacts: Mapping[str, Artifact] = result.outputs if result.stage == "validate" else result.inputs
    return [
        DatasetInput(
            dataset=Dataset(
                name=name,
                digest=artifact.sha256[:MAX_DATASET_DIGEST_SIZE],
                source_type="s3" if artifact.uri.startswith("s3://") else "local",
                source=json.dumps({"uri": artifact.uri, "sha256": artifact.sha256}),
                profile=json.dumps({"num_bytes": artifact.num_bytes}),
            ),
            tags=[InputTag(MLFLOW_DATASET_CONTEXT, name)],
        )
        for name, artifact in sorted(artifacts.items())
        if artifact.uri.endswith(".parquet") and name != "records"
    ]
