"""The tiny workflow with its data and its teacher in a bucket, and what a run of it left in a store."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from tiny import write_workflow

from stillhouse.contract import ResultRef, StageResult
from stillhouse.stages.records import read_result
from stillhouse.store import open_store

ACTING = ("promote", "announce")
MOMENTARY = ("timings", "latencies", "report", "model-card")
"""Outputs that hold how long something took."""


def write_workflow_in_bucket(folder: Path, sources: str) -> Path:
    """Write the tiny workflow into ``folder``, but tables and teacher below the URI ``sources``; return the recipe."""
    folder.mkdir(parents=True)
    recipe = write_workflow(folder)
    store = open_store(sources)
    document = yaml.safe_load(recipe.read_text())
    tables = [document["data"]["train"], *(suite["table"] for suite in document["data"]["ood"])]
    for table in tables:
        file = folder / table["source"]["path"]
        store.put_file(file.name, file)
        table["source"] = {"kind": "s3", "uri": store.uri(file.name)}
        file.unlink()
    for file in sorted((folder / "teacher").iterdir()):
        store.put_file(f"teacher/{file.name}", file)
        file.unlink()
    document["teacher"]["source"] = {"kind": "s3", "uri": store.uri("teacher") + "/"}
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    return recipe


def digests_of(results: Mapping[str, ResultRef]) -> dict[str, str]:
    """Return the digest of every output that another run of the same recipe must reproduce; see `runs.digests`."""
    found: dict[str, StageResult] = {task: read_result(reference) for task, reference in results.items()}
    return {
        f"{task}: {name}": artifact.sha256
        for task, result in found.items()
        if result.stage not in ACTING
        for name, artifact in result.outputs.items()
        if name not in MOMENTARY
    }
