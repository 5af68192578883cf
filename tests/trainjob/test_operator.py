"""The operator beside a cluster in memory, with our double of the Trainer."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization
from fake_cluster import FakeCluster
from kubernetes.client import ApiException, V1EnvVar, V1EnvVarSource, V1ResourceRequirements, V1SecretKeySelector
from trainer_double import TrainerDouble

from stillhouse.orchestration.airflow import trainjob
from stillhouse.orchestration.airflow.trainjob import (
    TrainJobEnd,
    TrainJobFailed,
    TrainJobNameTaken,
    TrainJobNotStarted,
    TrainJobOperator,
)

NAME = "train-it"
RUNTIME = {
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": "node",
                        "template": {"spec": {"template": {"spec": {"containers": [{"name": "node", "image": "i"}]}}}},
                    }
                ]
            }
        },
    }
}
FIRST, SECOND = f"{NAME}-node-0-0", f"{NAME}-node-0-1"

Step = Callable[[], object]


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.runtimes["torch"] = RUNTIME
    return made


def context(**more: Any) -> Any:
    return {"ti": SimpleNamespace(**{"dag_id": "d", "run_id": "r", "task_id": "train", "map_index": -1, **more})}


def operator(cluster: FakeCluster, kind: type[TrainJobOperator] = TrainJobOperator, **more: Any) -> TrainJobOperator:
    settings = {"name": NAME, "namespace": "n", "runtime_ref": "torch", "num_nodes": 2, **more}
    made = kind(task_id="train", active_deadline_seconds=600, poll_interval=0, **settings)
    made.__dict__["hook"] = cluster.hook
    return made


def let(cluster: FakeCluster, *steps: Step) -> None:
    """Before each look at the TrainJob, let the Trainer work and take the next step."""
    double, left = TrainerDouble(cluster, cluster, "n"), list(steps)

    def act() -> None:
        for _ in range(3):
            double.reconcile()
        if left:
            left.pop(0)()
            double.reconcile()

    cluster.before_read = act


def succeed(cluster: FakeCluster) -> None:
    for name in list(cluster.pods):
        cluster.end_pod(name, 0)


def abandoned(cluster: FakeCluster, **more: Any) -> TrainJobOperator:
    """Make a TrainJob as a try does that dies right after."""
    made = operator(cluster, **more)
    made._ensure(context())
    return made


def test_the_package_stands_alone() -> None:
    folder = Path(trainjob.__file__).parent
    imported = re.findall(
        r"^(?:from|import) (stillhouse\S*)", "".join(p.read_text() for p in folder.glob("*.py")), re.M
    )
    assert imported
    assert all(name.startswith(trainjob.__name__) for name in imported)


def test_a_train_job_is_made_followed_and_deleted(cluster: FakeCluster) -> None:
    let(cluster, lambda: None, lambda: succeed(cluster))
    status = operator(cluster).execute(context())
    assert status["conditions"][0]["type"] == "Complete"
    assert cluster.created == [NAME]
    assert cluster.deletions == [(NAME, "Background")]
    assert not cluster.jobs


def test_what_is_asked_for_is_what_is_made(cluster: FakeCluster) -> None:
    secret = V1EnvVarSource(secret_key_ref=V1SecretKeySelector(name="s", key="k"))
    made = operator(
        cluster,
        image="i@sha256:0",
        command=["python", "-m", "x"],
        args=["--a"],
        env=[{"name": "A", "value": "1"}, V1EnvVar(name="B", value_from=secret)],
        num_proc_per_node="auto",
        resources_per_node=V1ResourceRequirements(limits={"cpu": "2"}),
        runtime_patches=[{"manager": "m"}],
        labels={"team": "t"},
        annotations={"why": "so"},
        queue_name="q",
    ).build(context())
    assert made["metadata"] == {
        "name": NAME,
        "namespace": "n",
        "labels": {
            **{"dag_id": "d", "run_id": "r", "task_id": "train"},
            **{"team": "t", "kueue.x-k8s.io/queue-name": "q"},
        },
        "annotations": {"why": "so"},
    }
    assert made["spec"] == {
        "runtimeRef": {"name": "torch"},
        "trainer": {
            "image": "i@sha256:0",
            "command": ["python", "-m", "x"],
            "args": ["--a"],
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
            "numNodes": 2,
            "numProcPerNode": "auto",
            "resourcesPerNode": {"limits": {"cpu": "2"}},
        },
        "activeDeadlineSeconds": 600,
        "suspend": True,
        "runtimePatches": [{"manager": "m"}],
    }


def test_the_name_is_the_task_instance_whatever_its_try(cluster: FakeCluster) -> None:
    task = operator(cluster, name=None)

    def name(**more: Any) -> str:
        return str(task.build(context(**more))["metadata"]["name"])

    assert name(try_number=1) == name(try_number=2)
    others = {name(), name(run_id="r2"), name(map_index=3), name(task_id="Group.train_Students_on_everything" * 3)}
    assert len(others) == 4
    assert all(len(one) <= 45 and one.replace("-", "").isalnum() and one == one.lower() for one in others)


def test_airflow_takes_it_and_renders_its_fields() -> None:
    with DAG("d") as dag:
        made = TrainJobOperator(
            task_id="t",
            runtime_ref="torch",
            active_deadline_seconds=60,
            name="train-{{ run_id }}",
            command=["train", "{{ run_id }}"],
            env={"RUN": "{{ run_id }}"},
            resources_per_node=V1ResourceRequirements(limits={"cpu": "2"}),
            queue_name="q",
            queue="workers",
        )
    DagSerialization.to_dict(dag)
    made.render_template_fields({"run_id": "r1"})
    assert (made.name, made.command, made.env) == ("train-r1", ["train", "r1"], {"RUN": "r1"})
    assert made.queue == "workers"  # Airflow's own


@pytest.mark.parametrize("seconds", [0, -5])
def test_there_is_always_a_deadline(seconds: int) -> None:
    with pytest.raises(ValueError, match="active_deadline_seconds"):
        TrainJobOperator(task_id="t", runtime_ref="r", active_deadline_seconds=seconds)


def test_another_try_goes_on_with_what_it_finds(cluster: FakeCluster) -> None:
    abandoned(cluster)
    let(cluster, lambda: None, lambda: succeed(cluster))
    operator(cluster).execute(context())
    assert cluster.created == [NAME]


def test_another_queue_makes_no_other_owner(cluster: FakeCluster) -> None:
    abandoned(cluster, queue_name="one")
    cluster.job()["spec"]["suspend"] = False
    let(cluster, lambda: None, lambda: succeed(cluster))
    operator(cluster, queue_name="two").execute(context())
    assert cluster.created == [NAME]


@pytest.mark.parametrize("change", [{"dag_id": "other"}, {"run_id": "r2"}, {"map_index": 1}])
def test_somebody_elses_train_job_is_left_alone(cluster: FakeCluster, change: dict[str, Any]) -> None:
    abandoned(cluster)
    with pytest.raises(TrainJobNameTaken, match=r"belongs to another owner \(dag_id=d, .*task_id=train\)"):
        operator(cluster).execute(context(**change))
    assert NAME in cluster.jobs


def test_a_conflict_means_that_somebody_was_faster(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    create = cluster.create_namespaced_custom_object

    def created_but_unanswered(*args: Any) -> Any:
        create(*args)
        return create(*args)

    monkeypatch.setattr(cluster, "create_namespaced_custom_object", created_but_unanswered)
    let(cluster, lambda: None, lambda: succeed(cluster))
    operator(cluster).execute(context())
    assert cluster.created == [NAME]


def fails_with(cluster: FakeCluster, *ends: Step) -> TrainJobEnd:
    let(cluster, lambda: None, lambda: [end() for end in ends])
    with pytest.raises(TrainJobFailed) as raised:
        operator(cluster).execute(context())
    return raised.value.end


def test_a_failure_tells_the_exit_code_of_who_failed_first(cluster: FakeCluster) -> None:
    end = fails_with(
        cluster, lambda: cluster.end_pod(FIRST, 70, second=5), lambda: cluster.end_pod(SECOND, 78, second=4)
    )
    assert (end.exit_code, end.out_of_memory, end.reason) == (78, False, "FailedJobs")
    assert cluster.deletions == [(NAME, "Background")]


@pytest.mark.parametrize("told", [143, 130])
def test_who_was_told_to_stop_is_no_cause(cluster: FakeCluster, told: int) -> None:
    end = fails_with(
        cluster, lambda: cluster.end_pod(FIRST, told, second=4), lambda: cluster.end_pod(SECOND, 75, second=4)
    )
    assert end.exit_code == 75


def test_of_one_second_a_killed_node_is_the_cause(cluster: FakeCluster) -> None:
    end = fails_with(cluster, lambda: cluster.end_pod(FIRST, 70), lambda: cluster.end_pod(SECOND, 137))
    assert end.exit_code == 137


def test_a_lost_machine_is_the_cause_and_has_no_exit_code(cluster: FakeCluster) -> None:
    end = fails_with(cluster, lambda: cluster.end_pod(FIRST, 70), lambda: cluster.lose_pod(SECOND))
    assert end.exit_code is None


def test_lack_of_memory_is_told(cluster: FakeCluster) -> None:
    end = fails_with(cluster, lambda: cluster.end_pod(SECOND, 137, reason="OOMKilled"))
    assert (end.exit_code, end.out_of_memory) == (137, True)


def test_a_deadline_is_told(cluster: FakeCluster) -> None:
    end = fails_with(cluster, lambda: cluster.job()["metadata"].update(creationTimestamp="2026-01-01T00:00:00Z"))
    assert (end.reason, end.exit_code) == ("DeadlineExceeded", None)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_train_job_that_is_gone_has_failed(cluster: FakeCluster, replaced: bool) -> None:
    def go() -> None:
        succeed(cluster)
        job = cluster.job()
        cluster.vanish()
        if replaced:
            cluster.jobs[NAME] = {**job, "metadata": {**job["metadata"], "uid": "another"}}

    let(cluster, lambda: None, go)
    with pytest.raises(TrainJobFailed, match="Vanished"):
        operator(cluster).execute(context())
    assert cluster.deletions == []


def test_a_failure_that_nobody_saw_is_made_anew(cluster: FakeCluster) -> None:
    abandoned(cluster)
    cluster.end_job("Failed", "FailedJobs")
    let(cluster, lambda: None, lambda: succeed(cluster))
    operator(cluster).execute(context())
    assert cluster.created == [NAME, NAME]
    assert cluster.deletions == [(NAME, "Background")] * 2


def test_a_failure_that_nobody_saw_may_be_the_last_word(cluster: FakeCluster) -> None:
    class Final(TrainJobOperator):
        def reports_earlier_failure(self, end: TrainJobEnd) -> bool:
            return end.exit_code == 78

    let(cluster, lambda: cluster.end_pod(FIRST, 78))
    abandoned(cluster)
    cluster.get_namespaced_custom_object("", "", "", "", NAME)
    with pytest.raises(TrainJobFailed, match="exit code 78"):
        operator(cluster, Final).execute(context())
    assert cluster.created == [NAME]


def test_a_success_that_nobody_saw_is_a_success(cluster: FakeCluster) -> None:
    abandoned(cluster)
    cluster.end_job("Complete", "AllJobsCompleted")
    operator(cluster).execute(context())
    assert cluster.created == [NAME]
    assert not cluster.jobs


def test_a_failed_train_job_can_stay_to_be_looked_at(cluster: FakeCluster) -> None:
    let(cluster, lambda: None, lambda: cluster.end_pod(FIRST, 1))
    with pytest.raises(TrainJobFailed):
        operator(cluster, on_finish="delete_succeeded").execute(context())
    assert NAME in cluster.jobs
    let(cluster, lambda: None, lambda: None, lambda: succeed(cluster))
    operator(cluster, on_finish="delete_succeeded").execute(context())
    assert cluster.created == [NAME, NAME]
    assert not cluster.jobs


def test_a_killed_task_deletes_its_train_job_with_its_pods_first(cluster: FakeCluster) -> None:
    task = operator(cluster)
    let(cluster, lambda: None, task.on_kill)
    with pytest.raises(TrainJobFailed, match="Vanished"):
        task.execute(context())
    assert cluster.deletions == [(NAME, "Foreground")]


def test_a_task_that_is_killed_before_its_train_job_is_there_deletes_it(cluster: FakeCluster) -> None:
    task = operator(cluster)
    task.on_kill()
    with pytest.raises(TrainJobFailed, match="Vanished"):
        task.execute(context())
    assert cluster.deletions == [(NAME, "Foreground")]


def test_nobody_elses_train_job_is_deleted(cluster: FakeCluster) -> None:
    task = abandoned(cluster)
    job = dict(cluster.job())
    cluster.jobs[NAME] = {**job, "metadata": {**job["metadata"], "uid": "another"}}
    task._delete(job, "Foreground")
    assert NAME in cluster.jobs


def test_a_pod_that_does_not_start_is_explained(cluster: FakeCluster) -> None:
    let(cluster, lambda: cluster.hold_pod(FIRST, "ImagePullBackOff", "Back-off pulling image\nmore"))
    with pytest.raises(TrainJobNotStarted, match=r"Back-off pulling image$") as raised:
        operator(cluster, startup_timeout_seconds=1e-9).execute(context())
    assert raised.value.reason == "ImagePullBackOff"
    assert cluster.deletions == [(NAME, "Foreground")]


def test_pods_that_nobody_makes_are_noticed(cluster: FakeCluster) -> None:
    with pytest.raises(TrainJobNotStarted, match="no pods"):
        operator(cluster, startup_timeout_seconds=1e-9).execute(context())


def test_neither_a_queue_nor_a_full_cluster_counts_as_a_slow_start(cluster: FakeCluster) -> None:
    looks = 0

    def wait() -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            cluster.job()["spec"]["suspend"] = False
            let(cluster, *[full] * 5, lambda: succeed(cluster))

    def full() -> None:
        for pod in cluster.pods.values():
            pod.status.conditions = [SimpleNamespace(type="PodScheduled", status="False")]

    cluster.before_read = wait
    operator(cluster, startup_timeout_seconds=1e-9, queue_name="q").execute(context())
    assert looks == 5


def test_the_api_server_may_be_away_for_a_while(cluster: FakeCluster) -> None:
    def leave() -> None:
        cluster.away = 2

    let(cluster, leave, lambda: succeed(cluster))
    operator(cluster).execute(context())
    assert cluster.created == [NAME]


def test_the_api_server_may_not_be_away_for_ever(cluster: FakeCluster) -> None:
    cluster.away = 10
    with pytest.raises(Exception, match="connection refused"):
        operator(cluster, api_timeout_seconds=0.01).execute(context())
    assert cluster.away > 0


def test_what_is_refused_is_not_asked_again(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*args: Any) -> Any:
        asked.append(args)
        raise ApiException(status=403, reason="Forbidden")

    monkeypatch.setattr(cluster, "create_namespaced_custom_object", refuse)
    with pytest.raises(ApiException):
        operator(cluster).execute(context())
    assert len(asked) == 1


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    log = SimpleNamespace(
        info=lambda text, *args: lines.append(text % args), warning=lambda text, *args: lines.append(text % args)
    )
    monkeypatch.setattr(TrainJobOperator, "log", log)
    return lines


def test_the_output_of_the_first_node_is_shown_once(cluster: FakeCluster, said: list[str]) -> None:
    def write(*lines: str) -> Step:
        return lambda: [
            cluster.start_pod(FIRST),
            cluster.output[FIRST].extend(lines),
            cluster.output[SECOND].append("other"),
        ]

    let(cluster, lambda: None, write("one", "two"), write(), write("three"), write("four"), lambda: succeed(cluster))
    task = operator(cluster)
    task.execute(context())
    assert [line for line in said if "TrainJob" not in line] == ["one", "two", "three", "four"]
    assert task.last_line == "four"
    assert cluster.log_requests[0] is None
    assert all(seconds and seconds >= 5 for seconds in cluster.log_requests[1:])


def test_output_that_cannot_be_read_stops_nothing(
    cluster: FakeCluster, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ApiException(status=500, reason="Internal Server Error")

    monkeypatch.setattr(cluster, "read_namespaced_pod_log", refuse)
    let(cluster, *[lambda: cluster.start_pod(FIRST)] * 3, lambda: succeed(cluster))
    operator(cluster).execute(context())
    assert len([line for line in said if "can't be read: 500" in line]) == 1


def test_progress_is_told_when_it_changes(cluster: FakeCluster, said: list[str]) -> None:
    def progress(percent: int) -> Step:
        told = {
            "progressPercentage": percent,
            "estimatedRemainingSeconds": 9,
            "metrics": [{"name": "loss", "value": "0.5"}],
        }
        return lambda: cluster.job().update(status={"trainerStatus": told})

    let(cluster, progress(10), progress(10), progress(20), lambda: succeed(cluster))
    operator(cluster).execute(context())
    assert [line for line in said if "done" in line] == [
        "10 % done, about 9 s left, loss 0.5",
        "20 % done, about 9 s left, loss 0.5",
    ]
