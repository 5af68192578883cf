import airflow_home  # noqa: F401
from clusters import kubernetes_cluster, namespace  # noqa: F401
from engine import docker_engine, task_image  # noqa: F401
from trainer_cluster import trainer  # noqa: F401
