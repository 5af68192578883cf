"""Fixtures of a real engine."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("AIRFLOW_HOME", str(Path(tempfile.gettempdir()) / "stillhouse-tests-airflow"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")

from docker_tasks import house  # noqa: F401
from engine import docker_engine, task_image  # noqa: F401
