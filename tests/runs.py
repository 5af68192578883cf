"""Whole workflows as their users start them, and what they left in the store."""

import json
import subprocess
import sys
from pathlib import Path

from stillhouse.contract import StageResult

TAKES_MINUTES = 900


def run_command(recipe: Path, root: Path) -> list[str]:
    """Return ``stillhouse run``, with everything that it writes below ``root``."""
    places = ["--store", str(root / "store"), "--work", str(root / "work")]
    return [sys.executable, "-m", "stillhouse", "run", str(recipe), *places]


def run_in_process(recipe: Path, root: Path) -> subprocess.CompletedProcess[str]:
    """Run a recipe without Airflow and without MLflow, and wait for its end."""
    return subprocess.run(run_command(recipe, root), capture_output=True, text=True, timeout=TAKES_MINUTES)


def results(root: Path) -> dict[str, StageResult]:
    """Return every stage result in the store below ``root``, by stage and parameters."""
    found = [StageResult.model_validate_json(p.read_bytes()) for p in sorted(root.glob("store/stages/*/*/result.json"))]
    return {f"{result.stage} {json.dumps(result.parameters, sort_keys=True)}": result for result in found}


def digests(root: Path) -> dict[str, str]:
    """Return the digest of every output that another run must reproduce.

    Timings differ from run to run, and with them the decision's report and model card; the decision itself does not.
    """
    acting = ("promote", "announce")
    return {
        f"{task}: {name}": artifact.sha256
        for task, result in results(root).items()
        if result.stage not in acting
        for name, artifact in result.outputs.items()
        if name not in ("timings", "latencies", "report", "model-card")
    }


def task_states(root: Path) -> dict[str, str]:
    """Return the state of every task of the newest run, by task id."""
    newest = max((root / "store" / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime)
    return {path.stem: json.loads(path.read_text())["state"] for path in newest.glob("tasks/*.json")}
