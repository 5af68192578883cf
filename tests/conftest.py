"""What every test gets: a quiet, offline, scrubbed environment, and a small workflow to run."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for the modules of helpers beside this file

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
}
SCRUBBED = (
    *("STILLHOUSE_", "AIRFLOW", "MLFLOW_TRACKING", "AWS_ACCESS", "AWS_SECRET", "AWS_ENDPOINT", "AWS_PROFILE"),
    *("HF_TOKEN", "OPENAI_"),
)

settings.register_profile("patient", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("patient")

SERVERS_AT_HAND = ("STILLHOUSE_CLUSTER", "STILLHOUSE_ENGINE", "STILLHOUSE_KUBERNETES")
"""What `make test-cluster` says about the servers that it started."""

for name in [n for n in os.environ if n.startswith(SCRUBBED) and not n.startswith(SERVERS_AT_HAND)]:
    del os.environ[name]
os.environ.update(QUIET)


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    """Path of a small recipe with its data, teacher and policy beside it."""
    from tiny import write_workflow

    folder = tmp_path / "tiny"
    folder.mkdir()
    return write_workflow(folder)
