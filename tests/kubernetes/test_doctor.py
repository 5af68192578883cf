"""The doctor at a real API server."""

from pathlib import PurePosixPath

import pytest
from clusters import Cluster
from kubernetes import client

from stillhouse.orchestration.doctor.cluster import examine_cluster
from stillhouse.orchestration.runtimes import SecretKey, TrainJobRuntime

pytestmark = pytest.mark.kubernetes

PINNED = "x@sha256:" + "0" * 64


def test_the_api_server_is_asked_for_rights_and_for_all_that_pods_name(
    kubernetes_cluster: Cluster, namespace: str
) -> None:
    core = client.CoreV1Api(kubernetes_cluster.api())
    core.create_namespaced_secret(namespace, {"metadata": {"name": "both"}, "stringData": {"here": "do-not-show"}})
    runtime = TrainJobRuntime(
        image=PINNED,
        config_file=PurePosixPath(kubernetes_cluster.kubeconfig),
        namespace=namespace,
        secrets={"A": SecretKey(name="both", key="here"), "B": SecretKey(name="both", key="absent")},
        image_pull_secrets=("no-secret",),
        priority_class="system-node-critical",
        training_runtime="no-runtime",
    )
    found = list(examine_cluster(runtime))
    told = {(finding.subject, bool(finding.remedy)) for finding in found}
    assert {("Kubernetes", False), ("rights", False), ("namespace", False), ("priority", False)} <= told
    assert {("accounts", True), ("secret", True), ("Trainer", True)} <= told
    lines = [finding.found for finding in found if finding.subject == "secret"]
    assert lines == ["no-secret is missing", "both: absent missing"]
    assert not [finding for finding in found if "do-not-show" in finding.found + finding.remedy]
