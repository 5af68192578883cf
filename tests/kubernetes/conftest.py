"""Fixtures of a real cluster, and container tasks of known behaviour."""

import airflow_home  # noqa: F401
from clusters import kubernetes_cluster, namespace  # noqa: F401
from engine import docker_engine, task_image  # noqa: F401
