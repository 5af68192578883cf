"""The cluster that ``infra/cluster.sh`` started, and a namespace of its own for each test module.

Only that cluster: whatever a developer's KUBECONFIG points to is left alone.
"""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from kubernetes import client, config

SCRIPT = Path(__file__).parents[1] / "infra" / "cluster.sh"
REQUIRED = "STILLHOUSE_CLUSTER_REQUIRED"
"""Set to 1 in CI: there, a cluster that is away is a failure."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that answers."""

    kubeconfig: Path

    @property
    def host(self) -> str:
        """Address under which pods reach the servers of this machine that listen there."""
        document = yaml.safe_load(self.kubeconfig.read_text())
        return str(document["clusters"][0]["cluster"]["server"]).removeprefix("https://").partition(":")[0]

    def api(self) -> client.ApiClient:
        """Return a client for an administrator."""
        return config.new_client_from_config(str(self.kubeconfig))


@pytest.fixture(scope="session")
def kubernetes_cluster() -> Cluster:
    """Return the cluster. Without one, the test is skipped, or fails where it must not be missing."""
    status = subprocess.run([str(SCRIPT), "status"], capture_output=True, text=True, check=False)
    if status.returncode != 0:
        reason = status.stderr.strip()
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return Cluster(kubeconfig=Path(status.stdout.strip().rpartition("KUBECONFIG=")[2]))


@pytest.fixture(scope="module")
def namespace(kubernetes_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the name of a namespace with the default service account, which is removed with all that is in it."""
    core = client.CoreV1Api(kubernetes_cluster.api())
    module = request.module.__name__.rpartition(".")[2].replace("_", "-")
    name = f"{module}-{uuid4().hex[:6]}"
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
    try:
        yield name
    finally:
        core.delete_namespace(name)
