"""A container task as a pod: hardened, with its resources, secrets and volumes. And how a pod ended."""

from pathlib import PurePath, PurePosixPath
from typing import Any

from kubernetes.client import models as k8s

from stillhouse.contract import ExitCode
from stillhouse.orchestration.containers import PREFIX, ContainerTask, Ended
from stillhouse.orchestration.deployment import Deployment
from stillhouse.orchestration.runtimes import PodRuntime, Volume
from stillhouse.recipe import StageResources

CONTAINER = "stage"
"""Name of the container in the pod."""

USER = 10001
"""Of the task image; see ``docker/task``."""

TEMPORARY_SPACE = "8Gi"
"""Limit of /tmp, which is HOME too. A pod that exceeds it is evicted."""

NO_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"})
"""Why a container waits whose image can't be had."""

NOT_CONFIGURED = frozenset({"CreateContainerConfigError"})
"""Why a container waits that needs a Secret or a ConfigMap which is not there."""


def pod_arguments(task: ContainerTask, deployment: Deployment) -> dict[str, Any]:
    """Return what ``KubernetesPodOperator`` is given to describe the pod of ``task``.

    Args:
        task: What runs in it.
        deployment: With a runtime of pods.
    """
    runtime = deployment.runtime
    assert isinstance(runtime, PodRuntime)
    volumes, mounts = _volumes(task, runtime, deployment.work)
    return {
        "name": task.name,
        "random_name_suffix": False,
        "namespace": runtime.namespace,
        "labels": {"app.kubernetes.io/name": PREFIX, **pod_labels(task)},
        "image": task.image,
        "image_pull_policy": "IfNotPresent",
        "image_pull_secrets": [k8s.V1LocalObjectReference(name=name) for name in runtime.image_pull_secrets],
        "base_container_name": CONTAINER,
        "cmds": list(task.command()),
        "env_vars": _environment(task, runtime),
        "container_resources": pod_resources(task.resources, nodes=task.resources.nodes),
        "node_selector": dict(task.resources.node_selector),
        "tolerations": [
            k8s.V1Toleration(key=taint.key, operator=taint.operator, value=taint.value, effect=taint.effect)
            for taint in task.resources.tolerations
        ],
        "priority_class_name": runtime.priority_class,
        "service_account_name": f"{runtime.service_account_prefix}{task.labels['stage']}",
        "automount_service_account_token": False,
        "security_context": k8s.V1PodSecurityContext(
            run_as_non_root=True,
            run_as_user=USER,
            run_as_group=USER,
            fs_group=USER,
            fs_group_change_policy="OnRootMismatch",
            seccomp_profile=k8s.V1SeccompProfile(type="RuntimeDefault"),
        ),
        "container_security_context": k8s.V1SecurityContext(
            allow_privilege_escalation=False,
            privileged=False,
            read_only_root_filesystem=True,
            capabilities=k8s.V1Capabilities(drop=["ALL"]),
        ),
        "volumes": volumes,
        "volume_mounts": mounts,
        "active_deadline_seconds": int(task.timeout.total_seconds()),
        # Variables for every Service of the namespace would reach the libraries that are configured by variables.
        "full_pod_spec": k8s.V1Pod(spec=k8s.V1PodSpec(containers=[], enable_service_links=False)),
    }


def pod_labels(task: ContainerTask) -> dict[str, str]:
    """Return the labels by which the pod of ``task`` is known."""
    return {f"{PREFIX}/{name}": value for name, value in sorted(task.labels.items())}


def pod_resources(resources: StageResources, *, nodes: int) -> k8s.V1ResourceRequirements:
    """Return requests, which are the limits as well, of a pod that runs the processes of so many ``nodes``."""
    amounts = {"cpu": str(resources.cpus * resources.processes * nodes)}
    if resources.memory_gib is not None:
        amounts["memory"] = f"{int(resources.memory_gib * nodes * 1024)}Mi"
    if resources.gpus:
        amounts["nvidia.com/gpu"] = str(resources.gpus * nodes)
    return k8s.V1ResourceRequirements(requests=dict(amounts), limits=amounts)


def _environment(task: ContainerTask, runtime: PodRuntime) -> list[k8s.V1EnvVar]:
    plain = {**runtime.environment, **task.environment, "HOME": "/tmp", "PYTHONUNBUFFERED": "1"}
    if digest := (task.image or "").partition("@")[2]:
        # What results say that they were made with; a tag would say too little.
        plain["STILLHOUSE_IMAGE_DIGEST"] = digest
    secret = [
        k8s.V1EnvVar(
            name=name,
            value_from=k8s.V1EnvVarSource(secret_key_ref=k8s.V1SecretKeySelector(name=place.name, key=place.key)),
        )
        for name, place in sorted(runtime.secrets.items())
        if place.is_for(task.labels["stage"])
    ]
    return [k8s.V1EnvVar(name=name, value=value) for name, value in sorted(plain.items())] + secret


def _volumes(
    task: ContainerTask, runtime: PodRuntime, work: PurePath
) -> tuple[list[k8s.V1Volume], list[k8s.V1VolumeMount]]:
    volumes = [k8s.V1Volume(name="tmp", empty_dir=k8s.V1EmptyDirVolumeSource(size_limit=TEMPORARY_SPACE))]
    mounts = [k8s.V1VolumeMount(name="tmp", mount_path="/tmp")]
    for number, volume in enumerate(runtime.volumes):
        name = f"volume-{number}"
        volumes.append(_volume(name, volume))
        mounts.append(k8s.V1VolumeMount(name=name, mount_path=volume.target, read_only=volume.read_only))
    if not any(work.is_relative_to(volume.target) for volume in runtime.volumes):
        volumes.append(k8s.V1Volume(name="work", empty_dir=k8s.V1EmptyDirVolumeSource()))
        mounts.append(k8s.V1VolumeMount(name="work", mount_path=str(work)))
    for number, (path, place) in enumerate(sorted(runtime.secret_files.items())):
        if place.is_for(task.labels["stage"]):
            name = f"secret-{number}"
            item = k8s.V1KeyToPath(key=place.key, path=PurePosixPath(path).name, mode=0o440)
            source = k8s.V1SecretVolumeSource(secret_name=place.name, items=[item])
            volumes.append(k8s.V1Volume(name=name, secret=source))
            mounts.append(k8s.V1VolumeMount(name=name, mount_path=str(PurePosixPath(path).parent), read_only=True))
    if task.resources.world_size > 1 or task.resources.gpus:
        # Processes that train together exchange tensors there; a container gets 64 MiB otherwise.
        volumes.append(k8s.V1Volume(name="shared-memory", empty_dir=k8s.V1EmptyDirVolumeSource(medium="Memory")))
        mounts.append(k8s.V1VolumeMount(name="shared-memory", mount_path="/dev/shm"))
    return volumes, mounts


def _volume(name: str, volume: Volume) -> k8s.V1Volume:
    if volume.source.startswith("/"):
        return k8s.V1Volume(name=name, host_path=k8s.V1HostPathVolumeSource(path=volume.source, type="Directory"))
    claim = k8s.V1PersistentVolumeClaimVolumeSource(claim_name=volume.source, read_only=volume.read_only)
    return k8s.V1Volume(name=name, persistent_volume_claim=claim)


def has_ended(pod: k8s.V1Pod) -> bool:
    """Tell whether nothing runs in ``pod`` any more, nor ever will."""
    return pod.status.phase in ("Succeeded", "Failed")


def still_runs(pod: k8s.V1Pod) -> bool:
    """Tell whether ``pod`` may run for long, so that it is worth waiting for elsewhere."""
    status = _container_status(pod)
    return not has_ended(pod) and not (status and status.state.terminated)


def end_of_pod(pod: k8s.V1Pod | None) -> Ended:
    """Return how a pod ended.

    Args:
        pod: One that has ended; None for one that is gone, which counts as killed: nobody knows better.
    """
    status = _container_status(pod)
    terminated = status.state.terminated if status else None
    if terminated is None:
        # Evicted, preempted, or its node was lost.
        return Ended(exit_code=ExitCode.KILLED)
    return Ended(exit_code=terminated.exit_code, out_of_memory=terminated.reason == "OOMKilled")


def why_waiting(pod: k8s.V1Pod) -> tuple[str, str]:
    """Return reason and first line of the message of what ``pod`` waits for: its container, or a node."""
    status = _container_status(pod)
    waiting = status.state.waiting if status else None
    if waiting is None:
        conditions = pod.status.conditions or ()
        waiting = next((condition for condition in conditions if condition.type == "PodScheduled"), None)
    if waiting is None:
        return "", ""
    return waiting.reason or "", (waiting.message or "").strip().partition("\n")[0]


def _container_status(pod: k8s.V1Pod | None) -> k8s.V1ContainerStatus | None:
    statuses = (pod.status.container_statuses or ()) if pod else ()
    return next((status for status in statuses if status.name == CONTAINER), None)
