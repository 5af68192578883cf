"""``infra/kubernetes`` on a real API server: applied twice, and asked who may do what."""

import subprocess
from collections.abc import Iterator

import pytest
from clusters import Cluster
from kubernetes import client
from kustomize import kubectl, render, render_text

from stillhouse.orchestration.doctor.cluster import POD_RIGHTS

pytestmark = pytest.mark.kubernetes

OVERLAY = "overlays/local"
TASKS, SERVICES = "stillhouse", "stillhouse-services"
AIRFLOW = f"system:serviceaccount:{SERVICES}:stillhouse-airflow"
TEACH = f"system:serviceaccount:{TASKS}:stillhouse-teach"


def _kubectl(cluster: Cluster, *arguments: str) -> str:
    done = subprocess.run(
        [kubectl(), f"--kubeconfig={cluster.kubeconfig}", *arguments],
        input=render_text(OVERLAY),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def applied(kubernetes_cluster: Cluster) -> Iterator[Cluster]:
    core = client.CoreV1Api(kubernetes_cluster.api())
    if {TASKS, SERVICES} & {namespace.metadata.name for namespace in core.list_namespace().items}:
        pytest.fail(f"namespaces {TASKS} and {SERVICES} are in use; this test would remove them")
    try:
        _kubectl(kubernetes_cluster, "apply", "--server-side", "--filename=-")
        yield kubernetes_cluster
    finally:
        _kubectl(kubernetes_cluster, "delete", "--ignore-not-found", "--wait=true", "--filename=-")


def may(cluster: Cluster, who: str, *, namespace: str, group: str, resource: str, verb: str) -> bool:
    name, _, part = resource.partition("/")
    attributes = {"namespace": namespace, "group": group, "resource": name, "subresource": part, "verb": verb}
    review = client.AuthorizationV1Api(cluster.api()).create_subject_access_review(
        {"spec": {"user": who, "resourceAttributes": attributes}}
    )
    return bool(review.status.allowed)


def test_the_server_takes_every_object_and_a_second_time_changes_none(applied: Cluster) -> None:
    again = _kubectl(applied, "apply", "--server-side", "--dry-run=server", "--output=name", "--filename=-")
    assert len(again.splitlines()) == len(render(OVERLAY))
    assert _kubectl(applied, "diff", "--server-side", "--filename=-") == ""


def test_airflow_may_run_tasks_and_neither_read_secrets_nor_touch_the_servers(applied: Cluster) -> None:
    for group, resource, verb in POD_RIGHTS:
        assert may(applied, AIRFLOW, namespace=TASKS, group=group, resource=resource, verb=verb), (resource, verb)
        assert not may(applied, AIRFLOW, namespace="default", group=group, resource=resource, verb=verb)
    assert may(applied, AIRFLOW, namespace=TASKS, group="trainer.kubeflow.org", resource="trainjobs", verb="create")
    for resource in ("secrets", "pods/exec", "serviceaccounts/token", "configmaps"):
        assert not may(applied, AIRFLOW, namespace=TASKS, group="", resource=resource, verb="create")
        assert not may(applied, AIRFLOW, namespace=TASKS, group="", resource=resource, verb="get")


def test_a_stage_may_do_nothing_at_the_api_server(applied: Cluster) -> None:
    for resource in ("pods", "secrets", "configmaps"):
        for verb in ("get", "list", "create", "delete"):
            assert not may(applied, TEACH, namespace=TASKS, group="", resource=resource, verb=verb)


def test_a_pod_that_asks_for_nothing_gets_limits(applied: Cluster) -> None:
    core = client.CoreV1Api(applied.api())
    pod = {
        "metadata": {"name": "plain"},
        "spec": {"serviceAccountName": "stillhouse-teach", "containers": [{"name": "a", "image": "stillhouse/none:1"}]},
    }
    made = core.create_namespaced_pod(TASKS, pod, dry_run="All")
    (container,) = made.spec.containers
    assert container.resources.limits["memory"] == "4Gi"
    assert not [mount for mount in container.volume_mounts or () if "serviceaccount" in mount.mount_path]
