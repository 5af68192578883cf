"""The Kubernetes cluster of runtimes ``kubernetes`` and ``trainjob``. Nothing is created, and no secret is shown."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from stillhouse.orchestration.doctor.engine import check_pins
from stillhouse.orchestration.doctor.finding import Finding
from stillhouse.orchestration.runtimes import PodRuntime, TrainJobRuntime
from stillhouse.recipe import StageName

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

SECONDS_FOR_ANSWER = 15
COMMANDS = ("rollback", "reconcile")
"""What runs as a pod besides stages."""

POD_RIGHTS = (
    *(("", "pods", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")),
    ("", "pods/log", "get"),
    ("", "events", "list"),
)
_TRAINJOB_RIGHTS = tuple(
    ("trainer.kubeflow.org", "trainjobs", verb) for verb in ("create", "get", "list", "watch", "delete")
)
_TRAINER = ("trainer.kubeflow.org", "v1alpha1")
_KUEUE = ("kueue.x-k8s.io", "v1beta1")
_MANIFESTS = "infra/kubernetes"


def examine_cluster(runtime: PodRuntime) -> Iterator[Finding]:
    """Ask the API server whether tasks could run: rights, and everything that their pods name."""
    try:
        from kubernetes.client import ApiException
        from kubernetes.config import ConfigException
        from urllib3.exceptions import HTTPError
    except ImportError:
        yield Finding(
            subject="Kubernetes", found="its client is missing", remedy="pip install 'stillhouse[kubernetes]'"
        )
        return
    yield from check_pins(runtime)
    try:
        client, how = _connect(runtime)
        with client:
            yield from _server(client, how)
            yield from _rights(client, runtime)
            yield from _named_objects(client, runtime)
            if isinstance(runtime, TrainJobRuntime):
                yield from _trainer(client, runtime)
    except (ConfigException, HTTPError, OSError) as error:
        remedy = f"no API server answers ({type(error).__name__}): check the kubeconfig, or run this in Airflow's pod"
        yield Finding(subject="Kubernetes", found="out of reach", remedy=remedy)
    except ApiException as error:
        remedy = f"it answers {error.status} {error.reason}: check who this is to the API server"
        yield Finding(subject="Kubernetes", found="refuses to answer", remedy=remedy)


def _connect(runtime: PodRuntime) -> tuple["ApiClient", str]:
    """Return a client, and how it was found. An Airflow connection can be opened by a task only."""
    from kubernetes import client, config

    settings = client.Configuration()
    if runtime.config_file:
        config.load_kube_config(str(runtime.config_file), client_configuration=settings)
        how = f"by {runtime.config_file}"
    elif os.environ.get("KUBERNETES_SERVICE_HOST"):
        config.load_incluster_config(client_configuration=settings)
        how = "as this pod's account"
    else:
        config.load_kube_config(client_configuration=settings)
        how = "by this user's kubeconfig"
    settings.retries = False
    return client.ApiClient(settings), how


def _server(client: "ApiClient", how: str) -> Iterator[Finding]:
    from kubernetes.client import VersionApi

    version = VersionApi(client).get_code(_request_timeout=SECONDS_FOR_ANSWER)
    yield Finding(subject="Kubernetes", found=f"{version.git_version} at {client.configuration.host}, {how}")


def _rights(client: "ApiClient", runtime: PodRuntime) -> Iterator[Finding]:
    rights = POD_RIGHTS + (_TRAINJOB_RIGHTS if isinstance(runtime, TrainJobRuntime) else ())
    missing = [
        f"{verb} {resource}"
        for group, resource, verb in rights
        if not _may(client, runtime.namespace, group=group, resource=resource, verb=verb)
    ]
    yield Finding(
        subject="rights",
        found=f"{len(rights) - len(missing)} of {len(rights)} in namespace {runtime.namespace}",
        remedy=f"may not {', '.join(missing)}: apply {_MANIFESTS}/base/airflow-access.yaml" if missing else "",
    )


def _may(client: "ApiClient", namespace: str, *, group: str, resource: str, verb: str) -> bool:
    from kubernetes.client import AuthorizationV1Api

    name, _, part = resource.partition("/")
    attributes = {"namespace": namespace, "group": group, "resource": name, "subresource": part, "verb": verb}
    review = AuthorizationV1Api(client).create_self_subject_access_review(
        {"spec": {"resourceAttributes": attributes}}, _request_timeout=SECONDS_FOR_ANSWER
    )
    return bool(review.status.allowed)


def _named_objects(client: "ApiClient", runtime: PodRuntime) -> Iterator[Finding]:
    from kubernetes.client import CoreV1Api, SchedulingV1Api

    core, namespace = CoreV1Api(client), runtime.namespace
    limit = {"_request_timeout": SECONDS_FOR_ANSWER}
    apply = f"kubectl apply --server-side -k {_MANIFESTS}/overlays/YOURS"
    yield _look("namespace", namespace, partial(core.read_namespace, namespace, **limit), apply)
    yield _look("accounts", "of all stages", partial(_check_accounts, core, runtime), apply)
    keys: dict[str, set[str]] = {name: set() for name in runtime.image_pull_secrets}
    for reference in (*runtime.secrets.values(), *runtime.secret_files.values()):
        keys.setdefault(reference.name, set()).add(reference.key)
    for name, wanted in keys.items():
        remedy = f"make secret {name} in namespace {namespace}" + (
            f" with {', '.join(sorted(wanted))}" if wanted else ""
        )
        yield _look("secret", name, partial(_check_keys, core, namespace, name, wanted), remedy)
    for volume in runtime.volumes:
        if not volume.source.startswith("/"):
            yield _look("volume", volume.source, partial(_check_claim, core, namespace, volume.source), apply)
    if priority := runtime.priority_class:
        read = partial(SchedulingV1Api(client).read_priority_class, priority, **limit)
        yield _look("priority", priority, read, apply)


def _look(subject: str, name: str, read: Callable[[], Any], remedy: str) -> Finding:
    """Return what became of reading ``name``: not being allowed to look is no fault, since pods need no such right."""
    from kubernetes.client import ApiException

    try:
        read()
    except LookupError as error:
        return Finding(subject=subject, found=f"{name}: {error.args[0]}", remedy=remedy)
    except ApiException as error:
        if error.status == 404:
            return Finding(subject=subject, found=f"{name} is missing", remedy=remedy)
        if error.status == 403:
            return Finding(
                subject=subject,
                found=f"{name}: this account may not look",
                remedy="run the doctor with your own kubeconfig, too",
                grave=False,
            )
        raise
    return Finding(subject=subject, found=f"{name}: there")


def _check_accounts(core: Any, runtime: PodRuntime) -> None:
    found = core.list_namespaced_service_account(runtime.namespace, _request_timeout=SECONDS_FOR_ANSWER).items
    wanted = {f"{runtime.service_account_prefix}{name}" for name in (*get_args(StageName), *COMMANDS)}
    if missing := sorted(wanted - {account.metadata.name for account in found}):
        raise LookupError(f"{', '.join(missing)} missing")


def _check_keys(core: Any, namespace: str, name: str, keys: set[str]) -> None:
    data = core.read_namespaced_secret(name, namespace, _request_timeout=SECONDS_FOR_ANSWER).data or {}
    if missing := sorted(key for key in keys if not data.get(key)):
        raise LookupError(f"{', '.join(missing)} missing")


def _check_claim(core: Any, namespace: str, name: str) -> None:
    claim = core.read_namespaced_persistent_volume_claim(name, namespace, _request_timeout=SECONDS_FOR_ANSWER)
    if claim.status.phase == "Lost":
        raise LookupError("its volume is lost")


def _trainer(client: "ApiClient", runtime: TrainJobRuntime) -> Iterator[Finding]:
    from kubernetes.client import CustomObjectsApi

    custom, namespace = CustomObjectsApi(client), runtime.namespace
    limit = {"_request_timeout": SECONDS_FOR_ANSWER}
    yield _look(
        "Trainer",
        "TrainJob",
        partial(custom.list_namespaced_custom_object, *_TRAINER, namespace, "trainjobs", limit=1, **limit),
        "install Kubeflow Trainer v2, or set runtime.kind to kubernetes",
    )
    training = runtime.training_runtime
    yield _look(
        "Trainer",
        training,
        partial(custom.get_cluster_custom_object, *_TRAINER, "clustertrainingruntimes", training, **limit),
        f"apply {_MANIFESTS}/components/trainer/runtime.yaml",
    )
    if queue := runtime.queue:
        yield _look(
            "queue",
            queue,
            partial(custom.get_namespaced_custom_object, *_KUEUE, namespace, "localqueues", queue, **limit),
            f"install Kueue and apply {_MANIFESTS}/components/kueue/queues.yaml, or take runtime.queue out",
        )
