"""Pods of known behaviour on a real cluster: hardened, found again, gone, out of memory."""

import asyncio
import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
from clusters import Cluster
from kubernetes import client
from pods import PodOperator, Script, airflow_context, create_accounts, deployment_on, script

from stillhouse.contract import ConfigurationError, ExitCode, NotPermitted, TryAgain
from stillhouse.orchestration.airflow.runtimes.pods import has_ended
from stillhouse.orchestration.airflow.runtimes.stage_pod import StagePod
from stillhouse.orchestration.containers import Ended, check_memory
from stillhouse.orchestration.deployment import Deployment

pytestmark = pytest.mark.kubernetes

PATIENCE = 120


class House:
    """A namespace, and what may happen to pods in it."""

    def __init__(self, cluster: Cluster, namespace: str, image: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.image = image
        self.core = client.CoreV1Api(cluster.api())

    def deployment(self, **runtime: Any) -> Deployment:
        return deployment_on(self.cluster, self.namespace, self.image, **runtime)

    def script(self, name: str, text: str, **resources: Any) -> Script:
        return script(name, text, image=self.image, **resources)

    def run(self, task: Script, **runtime: Any) -> Ended:
        ended: Ended = PodOperator(task=task, deployment=self.deployment(**runtime)).execute(airflow_context("t1"))
        return ended

    def pod(self, task: Script) -> client.V1Pod | None:
        found = self.core.list_namespaced_pod(self.namespace, field_selector=f"metadata.name={task.name}").items
        return found[0] if found else None

    def await_pod(self, task: Script, reached: Callable[[client.V1Pod | None], bool]) -> client.V1Pod | None:
        deadline = time.monotonic() + PATIENCE
        while not reached(pod := self.pod(task)):
            assert time.monotonic() < deadline, pod and pod.status
            time.sleep(0.1)
        return pod

    def await_ready(self, task: Script) -> None:
        """Wait until ``task`` can be told to stop."""
        self.await_pod(task, running)
        while "ready" not in self.core.read_namespaced_pod_log(task.name, self.namespace):
            time.sleep(0.1)

    def vanish(self, task: Script) -> None:
        """Remove the pod as a lost node does: without a word."""
        self.core.delete_namespaced_pod(task.name, self.namespace, grace_period_seconds=0)
        self.await_pod(task, lambda pod: pod is None)

    def lose_worker(self, task: Script, reached: Callable[[client.V1Pod | None], bool]) -> None:
        """Run ``task`` in a process that is killed when its pod has ``reached`` something."""
        process = multiprocessing.get_context("fork").Process(target=self.run, args=(task,))
        process.start()
        try:
            self.await_pod(task, reached)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL

    def pods_ever(self, task: Script) -> int:
        """Return how many pods of that name the API server has seen scheduled."""
        events = self.core.list_namespaced_event(
            self.namespace, field_selector=f"involvedObject.name={task.name},reason=Scheduled"
        )
        return len({event.involved_object.uid for event in events.items})


@pytest.fixture(scope="module")
def house(kubernetes_cluster: Cluster, namespace: str, task_image: str) -> Iterator[House]:
    create_accounts(kubernetes_cluster, namespace, "permit")
    return House(kubernetes_cluster, namespace, task_image)


def running(pod: client.V1Pod | None) -> bool:
    return pod is not None and pod.status.phase == "Running"


def ended(pod: client.V1Pod | None) -> bool:
    return pod is not None and has_ended(pod)


STOPS = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: exit(75))
print("ready")
time.sleep(600)
"""
LOOK = """
import json, os
from pathlib import Path

def writes(path):
    try:
        Path(path, "probe").write_text("probe")
    except OSError:
        return False
    return True

status = dict(line.split(":\\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\\t" in line)
print(json.dumps({
    "user": [os.getuid(), os.getgid()],
    "capabilities": {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")},
    "no_new_privileges": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "writable": [path for path in ("/", "/etc", "/usr", "/opt", "/var", "/home", "/tmp", "/work") if writes(path)],
    "token": Path("/var/run/secrets/kubernetes.io").exists(),
    "services": [name for name in os.environ if name.startswith("MLFLOW")],
}))
"""


def test_a_pod_is_hardened_as_its_container_sees_it(house: House) -> None:
    service = client.V1ServiceSpec(ports=[client.V1ServicePort(port=5000)])
    house.core.create_namespaced_service(
        house.namespace, client.V1Service(metadata=client.V1ObjectMeta(name="mlflow"), spec=service)
    )
    task = house.script("look", LOOK)
    seen = json.loads(house.run(task).last_line)
    assert seen == {
        "user": [10001, 10001],
        "capabilities": {"CapEff": 0, "CapPrm": 0, "CapBnd": 0},
        "no_new_privileges": "1",
        "seccomp": "2",
        "writable": ["/tmp", "/work"],
        "token": False,
        "services": [],
    }
    house.await_pod(task, lambda pod: pod is None)


def test_the_next_try_finds_the_pod_of_a_worker_that_was_killed(house: House) -> None:
    task = house.script("found", "import time; time.sleep(8); print('done')")
    house.lose_worker(task, running)
    assert house.run(task) == Ended(exit_code=0, last_line="done")
    assert house.pods_ever(task) == 1


@pytest.mark.parametrize(("code", "pods"), [(0, 1), (65, 1), (75, 2)])
def test_what_becomes_of_a_pod_that_ended_unseen(house: House, code: int, pods: int) -> None:
    task = house.script(f"unseen-{code}", f"print('over'); raise SystemExit({code})")
    house.lose_worker(task, lambda pod: pod is not None)
    house.await_pod(task, ended)
    assert house.run(task) == Ended(exit_code=code, last_line="over")
    assert house.pods_ever(task) == pods


def test_a_pod_that_vanishes_counts_as_killed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    task = house.script("vanishes", "import time; time.sleep(600)")
    start = StagePod.await_pod_start

    def start_and_vanish(self: StagePod, pod: client.V1Pod) -> None:
        start(self, pod)
        house.vanish(task)

    monkeypatch.setattr(StagePod, "await_pod_start", start_and_vanish)
    assert house.run(task).killed


def test_out_of_memory_names_the_field_to_raise(house: House) -> None:
    task = house.script("hungry", "held = bytearray(2**30); print(len(held))", memory_gib=0.0625)
    end = house.run(task)
    assert end.out_of_memory
    with pytest.raises(ConfigurationError, match=r"resources\.stages\.permit\.memory_gib"):
        check_memory(task, end)


def test_an_image_that_cannot_be_had_is_named(house: House) -> None:
    task = script("image", "", image="stillhouse/Task:1")
    with pytest.raises(ConfigurationError, match=r"stillhouse/Task:1.*InvalidImageName"):
        house.run(task)
    pod = house.pod(task)
    assert pod is None or pod.metadata.deletion_timestamp


def test_a_missing_service_account_is_named(house: House) -> None:
    task = house.script("account", "")
    with pytest.raises(NotPermitted, match='serviceaccount "other-permit" not found'):
        house.run(task, service_account_prefix="other-")


def test_a_pod_of_somebody_else_is_left_alone(house: House) -> None:
    task = house.script("other", "")
    container = client.V1Container(name="other", image=house.image, command=["sleep", "600"])
    pod = client.V1Pod(metadata=client.V1ObjectMeta(name=task.name), spec=client.V1PodSpec(containers=[container]))
    house.core.create_namespaced_pod(house.namespace, pod)
    with pytest.raises(ConfigurationError, match="somebody else's"):
        house.run(task)
    assert house.pod(task) is not None


def test_a_task_that_airflow_stops_leaves_no_pod(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    task = house.script("stopped", STOPS)
    operator = PodOperator(task=task, deployment=house.deployment())
    start = StagePod.await_pod_start

    def start_and_stop(self: StagePod, pod: client.V1Pod) -> None:
        start(self, pod)
        house.await_ready(task)
        operator.on_kill()

    monkeypatch.setattr(StagePod, "await_pod_start", start_and_stop)
    assert operator.execute(airflow_context("t1")).exit_code in (ExitCode.TRY_AGAIN, ExitCode.KILLED)
    house.await_pod(task, lambda pod: pod is None)


def test_the_triggerer_waits_in_place_of_the_worker(house: House) -> None:
    task = house.script("deferred", "print('done')")
    event = deferred_event(house, task)
    assert event["status"] == "success"
    operator = PodOperator(task=task, deployment=house.deployment(deferrable=True))
    assert operator.trigger_reentry(airflow_context("t1"), event) == Ended(exit_code=0, last_line="done")
    assert house.pods_ever(task) == 1


def test_a_pod_that_vanished_while_the_triggerer_waited_is_no_success(house: House) -> None:
    """As airflow#73117."""
    task = house.script("deferred-gone", "print('done')")
    event = deferred_event(house, task)
    assert event["status"] == "success"
    house.vanish(task)
    operator = PodOperator(task=task, deployment=house.deployment(deferrable=True))
    assert operator.trigger_reentry(airflow_context("t1"), event).killed
    assert house.pods_ever(task) == 1


def test_what_a_triggerer_that_gave_up_leads_to(house: House) -> None:
    task = house.script("given-up", STOPS)
    deployment = house.deployment(deferrable=True)
    with pytest.raises(TaskDeferred):
        PodOperator(task=task, deployment=deployment).execute(airflow_context("t1"))
    house.await_ready(task)

    def go_on(**event: Any) -> None:
        PodOperator(task=task, deployment=deployment).trigger_reentry(airflow_context("t1"), event)

    with pytest.raises(TaskDeferred) as again:
        go_on(status="error", message="lost")
    assert again.value.trigger.trigger_kwargs["_redefer_count"] == 1
    with pytest.raises(TryAgain, match="lost"):
        go_on(status="error", message="lost", _redefer_count=StagePod.MAX_REDEFER_ATTEMPTS)
    assert running(house.pod(task))
    with pytest.raises(AirflowTaskTimeout):
        go_on(status="timeout", message="too long")
    house.await_pod(task, lambda pod: pod is None)


def deferred_event(house: House, task: Script) -> dict[str, Any]:
    """Run ``task`` until the worker lets go, then its trigger; return what that says in the end."""
    operator = PodOperator(task=task, deployment=house.deployment(deferrable=True))
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(airflow_context("t1"))
    assert deferred.value.method_name == "trigger_reentry"
    return asyncio.run(anext(deferred.value.trigger.run())).payload
