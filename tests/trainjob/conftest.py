"""Fixtures of a real cluster with our double of the Trainer."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("AIRFLOW_HOME", str(Path(tempfile.gettempdir()) / "stillhouse-tests-airflow"))
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "True")

from clusters import kubernetes_cluster, namespace  # noqa: F401
from engine import docker_engine, task_image  # noqa: F401
from trainer_cluster import trainer  # noqa: F401
