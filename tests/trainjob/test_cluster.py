"""The operator beside a real API server, with real pods that our double of the Trainer makes."""

import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from trainer_cluster import TrainerCluster

from stillhouse.orchestration.airflow.trainjob import TrainJobFailed, TrainJobNameTaken, TrainJobOperator

pytestmark = pytest.mark.kubernetes

PATIENCE = 120
PORT = 8000
STAY = f"""
import signal, socket
signal.signal(signal.SIGTERM, lambda *_: exit(143))
print("up", flush=True)
socket.create_server(("", {PORT})).accept()
"""
"""Ends when somebody connects."""

MEET = """
import os, socket
place = os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"])
if os.environ["PET_NODE_RANK"] == "0":
    with socket.create_server(place) as server:
        print("met", server.accept()[0].recv(9).decode())
else:
    while True:
        try:
            socket.create_connection(place).send(b"the other")
            break
        except ConnectionRefusedError:
            pass
"""


def context(run_id: str = "r") -> Any:
    return {"ti": SimpleNamespace(dag_id="d", run_id=run_id, task_id="train", map_index=-1)}


def operator(trainer: TrainerCluster, name: str, script: str, **more: Any) -> TrainJobOperator:
    settings = {"num_nodes": 1, "active_deadline_seconds": PATIENCE, **more}
    return TrainJobOperator(
        task_id="train",
        name=name,
        namespace=trainer.namespace,
        runtime_ref=trainer.runtime,
        image=trainer.image,
        command=["python", "-c", script],
        num_proc_per_node=1,
        poll_interval=0.3,
        kubernetes_conn_id=None,
        config_file=str(trainer.cluster.kubeconfig),
        **settings,
    )


def await_true(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def running(trainer: TrainerCluster, name: str, nodes: int = 1) -> bool:
    return [pod.status.phase for pod in trainer.pods(name)] == ["Running"] * nodes


def test_nodes_find_one_another_and_the_train_job_is_removed(trainer: TrainerCluster) -> None:
    task = operator(trainer, "meets", MEET, num_nodes=2)
    status = task.execute(context())
    assert status["conditions"][0]["type"] == "Complete"
    assert task.last_line == "met the other"
    await_true(lambda: not trainer.jobs() and not trainer.pods("meets"))


def test_a_worker_is_killed_and_another_try_goes_on(trainer: TrainerCluster) -> None:
    first = operator(trainer, "adopted", STAY)
    worker = multiprocessing.get_context("fork").Process(target=first.execute, args=(context(),))
    worker.start()
    try:
        await_true(lambda: running(trainer, "adopted"))
    finally:
        worker.kill()
        worker.join()
    assert worker.exitcode == -signal.SIGKILL
    with pytest.raises(TrainJobNameTaken, match="run_id=r,"):
        operator(trainer, "adopted", STAY).execute(context("another"))

    second = operator(trainer, "adopted", STAY)
    (pod,) = trainer.pods("adopted")

    def end() -> None:
        await_true(lambda: second.last_line == "up")
        socket.create_connection((pod.status.pod_ip, PORT)).close()

    ender = threading.Thread(target=end)
    ender.start()
    status = second.execute(context())
    ender.join()
    assert status["conditions"][0]["type"] == "Complete"
    assert trainer.created("adopted") == 1
    assert not trainer.jobs()


def test_a_killed_task_takes_its_pods_along(trainer: TrainerCluster) -> None:
    task = operator(trainer, "cancelled", STAY, num_nodes=2)

    def kill() -> None:
        await_true(lambda: running(trainer, "cancelled", 2))
        task.on_kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TrainJobFailed, match="Vanished"):
        task.execute(context())
    killer.join()
    # In the foreground: it is gone when they are.
    assert not trainer.pods("cancelled")


def test_the_exit_code_of_the_node_that_failed_is_told(trainer: TrainerCluster) -> None:
    fails = f"import os\nif os.environ['PET_NODE_RANK'] == '1': exit(78)\n{STAY}"
    with pytest.raises(TrainJobFailed, match="exit code 78") as raised:
        operator(trainer, "fails", fails, num_nodes=2).execute(context())
    assert raised.value.end.exit_code == 78


def test_a_node_that_is_lost_has_no_exit_code_of_its_own(trainer: TrainerCluster) -> None:
    def lose() -> None:
        await_true(lambda: running(trainer, "loses", 2))
        trainer.core.delete_namespaced_pod("loses-node-0-1", trainer.namespace, grace_period_seconds=0)

    loser = threading.Thread(target=lose)
    loser.start()
    with pytest.raises(TrainJobFailed) as raised:
        operator(trainer, "loses", STAY, num_nodes=2).execute(context())
    loser.join()
    assert raised.value.end.exit_code in (None, 143)  # 143: the other one was told to stop


def test_a_deadline_ends_a_train_job(trainer: TrainerCluster) -> None:
    with pytest.raises(TrainJobFailed, match="DeadlineExceeded"):
        operator(trainer, "late", STAY, active_deadline_seconds=2).execute(context())
