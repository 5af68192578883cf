"""The runtimes: where the tasks of a workflow run. A part of the deployment, read when Airflow parses the DAGs.

::

    local       a process of Airflow's worker                       one machine, no containers
    docker      a hardened container of a Docker engine             one machine
    kubernetes  a pod                                               a cluster
    trainjob    as kubernetes, and ``distill`` as a TrainJob        a cluster with Kubeflow Trainer v2: many nodes
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from stillhouse.recipe import Config, StageResources

ImageReference = Annotated[str, StringConstraints(pattern=r"^\S+$", max_length=512)]
"""A container image; with a digest (``NAME@sha256:…``) wherever more than one machine runs it."""

POOLED = "gpu"
"""Usual name of the Airflow pool that holds a slot for each accelerator."""


class Volume(Config):
    """A place that containers see besides their own."""

    source: str
    """Docker: a named volume, or a folder of the engine's machine. Kubernetes: a PersistentVolumeClaim, or with a
    leading ``/`` a folder of the node."""
    target: str
    """Where it is mounted."""
    read_only: bool = True


class SecretKey(Config):
    """One value in a Kubernetes Secret."""

    name: str
    """Of the Secret."""
    key: str
    """Within it."""
    stages: tuple[str, ...] = ()
    """That get it, such as ``generate`` for a teacher's key, ``promote`` and ``rollback`` for the signing key; empty
    stands for all."""

    def is_for(self, stage: str) -> bool:
        """Tell whether a task of ``stage`` gets it."""
        return not self.stages or stage in self.stages


class LocalRuntime(Config):
    """Tasks are processes of Airflow's worker, in the interpreter that Airflow runs in."""

    kind: Literal["local"] = "local"


class ContainerRuntime(Config):
    """What all runtimes with containers have in common."""

    image: ImageReference
    """What tasks run in; see ``docker/task``."""
    gpu_image: ImageReference | None = None
    """What tasks with ``gpus`` run in; None stands for ``image``."""
    environment: dict[str, str] = {}
    """Plain settings of every container, such as ``AWS_ENDPOINT_URL_S3``. Nothing secret: they are shown."""
    volumes: tuple[Volume, ...] = ()
    """One of them holds the work folder, unless tasks may start over when their container is lost."""
    gpu_pool: str | None = POOLED
    """Airflow pool of tasks with ``gpus``, each of which takes as many slots; None limits nothing."""
    max_parallel: int | None = Field(default=None, ge=1)
    """Shards of one task that run at the same time."""

    def image_for(self, resources: StageResources) -> str:
        """Return the image that a task with ``resources`` runs in."""
        return self.gpu_image or self.image if resources.gpus else self.image


class DockerRuntime(ContainerRuntime):
    """Tasks are containers of one Docker engine."""

    kind: Literal["docker"] = "docker"
    url: str = "unix:///var/run/docker.sock"
    """Where the engine listens."""
    network: str = "bridge"
    """What containers that talk to a server join; others get no network."""
    secret_variables: tuple[str, ...] = ()
    """Names of variables that are handed on from Airflow's environment. Their values are in no log and no file."""


class PodRuntime(ContainerRuntime):
    """What all runtimes with pods have in common."""

    namespace: str = "stillhouse"
    connection_id: str | None = "kubernetes_default"
    """Airflow connection to the cluster; None takes the account of the pod that Airflow runs in."""
    config_file: PurePosixPath | None = None
    """A kubeconfig, in place of the connection."""
    service_account_prefix: str = "stillhouse-"
    """The account of a stage's pod is this and the stage's name."""
    image_pull_secrets: tuple[str, ...] = ()
    secrets: dict[str, SecretKey] = {}
    """Environment variable -> where its value lies."""
    secret_files: dict[str, SecretKey] = {}
    """Path of a file -> where its content lies, such as the key that signs models. Its folder holds no other."""
    deferrable: bool = False
    """Wait in Airflow's triggerer, without a worker's slot."""
    priority_class: str | None = None


class KubernetesRuntime(PodRuntime):
    """Tasks are pods."""

    kind: Literal["kubernetes"] = "kubernetes"


class TrainJobRuntime(PodRuntime):
    """Tasks are pods, with ``distill`` as a TrainJob of Kubeflow Trainer v2: on as many nodes as it wants."""

    kind: Literal["trainjob"] = "trainjob"
    training_runtime: str = "stillhouse-distill"
    """ClusterTrainingRuntime of the jobs."""
    queue: str | None = None
    """Kueue queue of the jobs."""


Runtime = Annotated[LocalRuntime | DockerRuntime | KubernetesRuntime | TrainJobRuntime, Field(discriminator="kind")]
