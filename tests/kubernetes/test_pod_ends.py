"""What the states of a pod and the answers of the API server mean, without one."""

import json

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException
from kubernetes.client import ApiException
from kubernetes.client import models as k8s
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from stillhouse.contract import ConfigurationError, NotPermitted, StillhouseError, TryAgain
from stillhouse.orchestration.airflow.runtimes.pods import CONTAINER, end_of_pod, has_ended, still_runs, why_waiting
from stillhouse.orchestration.airflow.runtimes.stage_pod import explained_errors
from stillhouse.orchestration.containers import Ended


def pod(phase: str, *, reason: str | None = None, **state: object) -> k8s.V1Pod:
    """Return a pod whose container is in ``state``, if any is given."""
    container = k8s.V1ContainerStatus(
        name=CONTAINER, image="", image_id="", ready=False, restart_count=0, state=k8s.V1ContainerState(**state)
    )
    status = k8s.V1PodStatus(phase=phase, reason=reason, container_statuses=[container] if state else None)
    return k8s.V1Pod(status=status)


def terminated(code: int, reason: str = "Error") -> dict[str, object]:
    return {"terminated": k8s.V1ContainerStateTerminated(exit_code=code, reason=reason)}


@pytest.mark.parametrize(
    ("seen", "meant"),
    [
        (pod("Succeeded", **terminated(0, "Completed")), Ended(exit_code=0)),
        (pod("Failed", **terminated(65)), Ended(exit_code=65)),
        (pod("Failed", **terminated(137)), Ended(exit_code=137)),
        (pod("Failed", **terminated(137, "OOMKilled")), Ended(exit_code=137, out_of_memory=True)),
        # With more processes than one, it need not be the first that was killed.
        (pod("Failed", **terminated(1, "OOMKilled")), Ended(exit_code=1, out_of_memory=True)),
        (pod("Failed", reason="Evicted"), Ended(exit_code=137)),
        (pod("Failed", reason="DeadlineExceeded", **terminated(75)), Ended(exit_code=75)),
        (None, Ended(exit_code=137)),
    ],
)
def test_how_a_pod_ended(seen: k8s.V1Pod | None, meant: Ended) -> None:
    assert end_of_pod(seen) == meant


def test_a_pod_whose_container_is_over_is_not_waited_for_elsewhere() -> None:
    over = pod("Running", **terminated(0))
    assert (has_ended(over), still_runs(over)) == (False, False)
    assert still_runs(pod("Running", running=k8s.V1ContainerStateRunning()))
    assert still_runs(pod("Pending"))
    assert not still_runs(pod("Failed"))


def test_a_pod_waits_for_its_container_or_for_a_node() -> None:
    image = k8s.V1ContainerStateWaiting(reason="ErrImagePull", message="no such image\nmore")
    assert why_waiting(pod("Pending", waiting=image)) == ("ErrImagePull", "no such image")
    nowhere = pod("Pending")
    nowhere.status.conditions = [
        k8s.V1PodCondition(type="PodScheduled", status="False", reason="Unschedulable", message="0/1 nodes")
    ]
    assert why_waiting(nowhere) == ("Unschedulable", "0/1 nodes")
    assert why_waiting(pod("Pending")) == ("", "")


def answer(status: int, message: str) -> ApiException:
    error = ApiException(status=status, reason="reason")
    error.body = json.dumps({"message": message})
    return error


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (answer(403, "pods is forbidden: no rights"), NotPermitted, "no rights"),
        (answer(401, "Unauthorized"), NotPermitted, "Unauthorized"),
        (answer(403, "pods is forbidden: exceeded quota: gpus"), TryAgain, "exceeded quota"),
        (answer(404, 'namespaces "x" not found'), ConfigurationError, 'namespaces "x"'),
        (answer(422, "Pod is invalid:\n spec"), ConfigurationError, "Pod is invalid: spec"),
        (answer(409, "object is being deleted"), TryAgain, "being deleted"),
        (answer(429, "slow down"), TryAgain, "slow down"),
        (answer(503, "no leader"), TryAgain, "no leader"),
        (ApiException(status=500, reason="no JSON"), TryAgain, "no JSON"),
        (HTTPError("refused"), TryAgain, "is away"),
        (ConfigException("no such file"), ConfigurationError, "no such file"),
        (AirflowNotFoundException("no connection"), ConfigurationError, "connection_id"),
    ],
)
def test_what_an_answer_of_the_api_server_means(error: Exception, kind: type[StillhouseError], told: str) -> None:
    with pytest.raises(StillhouseError, match=told) as raised, explained_errors():
        raise error
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
