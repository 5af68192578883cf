from engine import airflow_image as airflow_image
from engine import docker_engine as docker_engine
from engine import mlflow_image as mlflow_image
from engine import task_image as task_image
