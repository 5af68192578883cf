"""``infra/kubernetes`` as it renders: valid for today's API, closed by default, without a secret."""

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kustomize import MANIFESTS, Manifest, render, render_text

from stillhouse.orchestration.deployment import DEPLOYMENT_FILE, Deployment
from stillhouse.orchestration.doctor.servers import PROBES
from stillhouse.orchestration.runtimes import PodRuntime, TrainJobRuntime
from stillhouse.recipe import StageName
from stillhouse.stages.catalog import CATALOG, StageSpec

OVERLAYS = ("overlays/local", "overlays/production")
NEWEST = "1.37"
CUSTOM = {"ClusterTrainingRuntime", "ExternalSecret", "ResourceFlavor", "ClusterQueue", "LocalQueue"}
COMMANDS = {"rollback", "reconcile"}
STAGES: tuple[StageName, ...] = get_args(StageName)
TASKS, SERVICES = "stillhouse", "stillhouse-services"
IAM = MANIFESTS / "overlays" / "production" / "iam"
VALUES = yaml.safe_load((MANIFESTS / "values-airflow.yaml").read_text())
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")


def of_kind(folder: str, *kinds: str) -> list[Manifest]:
    return [manifest for manifest in render(folder) if manifest["kind"] in kinds]


def named(folder: str, kind: str, name: str) -> Manifest:
    return next(manifest for manifest in of_kind(folder, kind) if manifest["metadata"]["name"] == name)


def pods(folder: str) -> Iterator[Manifest]:
    for manifest in of_kind(folder, "Deployment"):
        yield manifest["spec"]["template"]
    for manifest in of_kind(folder, "ClusterTrainingRuntime"):
        for job in manifest["spec"]["template"]["spec"]["replicatedJobs"]:
            yield job["template"]["spec"]["template"]


def deployment(overlay: str) -> Deployment:
    return Deployment.from_environment({DEPLOYMENT_FILE: str(MANIFESTS / overlay / "deployment.yaml")})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_for_the_newest_api_and_unknown_fields_are_none(overlay: str) -> None:
    for manifest in render(overlay):
        if manifest["kind"] in CUSTOM:
            continue
        kubernetes_validate.validate(manifest, NEWEST, strict=True)


def undeclared(value: Any, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Name the fields that a custom resource's schema does not declare, which an API server would drop in silence."""
    if isinstance(value, list):
        for entry in value:
            yield from undeclared(entry, schema.get("items", {}), path)
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    for name, inner in value.items():
        known = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
        if known is None:
            yield f"{path}.{name}"
        else:
            yield from undeclared(inner, known, f"{path}.{name}")


def test_the_training_runtime_is_what_kubeflow_s_own_definition_declares() -> None:
    definitions = yaml.safe_load_all((MANIFESTS.parent / "cluster" / "trainer" / "crds.yaml").read_text())
    definition = next(d for d in definitions if d["spec"]["names"]["kind"] == "ClusterTrainingRuntime")
    (version,) = definition["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    runtime = named("overlays/production", "ClusterTrainingRuntime", "stillhouse-distill")
    assert runtime["apiVersion"] == f"{definition['spec']['group']}/{version['name']}"
    jsonschema.validate(runtime, schema)
    described = {key: value for key, value in runtime.items() if key not in {"apiVersion", "kind", "metadata"}}
    assert list(undeclared(described, schema)) == []
    assert list(undeclared({"spec": {"nodes": 2}}, schema)) == [".spec.nodes"]


def test_the_local_overlay_needs_no_custom_resource_and_production_uses_all_of_them() -> None:
    assert of_kind("overlays/local", *CUSTOM) == []
    assert {manifest["kind"] for manifest in of_kind("overlays/production", *CUSTOM)} == CUSTOM


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_stage_and_command_has_an_account_without_a_token_or_a_role(overlay: str) -> None:
    accounts = [a for a in of_kind(overlay, "ServiceAccount") if a["metadata"]["namespace"] == TASKS]
    assert {a["metadata"]["name"] for a in accounts} == {f"stillhouse-{name}" for name in {*STAGES, *COMMANDS}}
    assert all(account["automountServiceAccountToken"] is False for account in accounts)
    bound = {subject["name"] for b in of_kind(overlay, "RoleBinding") for subject in b["subjects"]}
    assert bound == {"stillhouse-airflow"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_airflow_may_start_and_follow_tasks_and_read_no_secret(overlay: str) -> None:
    assert of_kind(overlay, "ClusterRole", "ClusterRoleBinding") == []
    roles = of_kind(overlay, "Role")
    assert {role["metadata"]["namespace"] for role in roles} == {TASKS}
    granted = {
        (resource, verb) for r in roles for x in r["rules"] for resource in x["resources"] for verb in x["verbs"]
    }
    assert {resource for resource, _ in granted} == {"pods", "pods/log", "events", "trainjobs"}
    assert {("pods", "create"), ("pods", "delete"), ("pods/log", "get"), ("trainjobs", "delete")} <= granted
    assert "*" not in {verb for _, verb in granted}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("namespace", [TASKS, SERVICES])
def test_nothing_may_talk_to_anything_by_default(overlay: str, namespace: str) -> None:
    spec = next(
        policy["spec"]
        for policy in of_kind(overlay, "NetworkPolicy")
        if (policy["metadata"]["name"], policy["metadata"]["namespace"]) == ("default-deny", namespace)
    )
    assert spec == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    for rule in selector.get("matchExpressions", ()):
        if rule["operator"] == "Exists":
            fits = rule["key"] in labels
        else:
            assert rule["operator"] == "In"
            fits = labels.get(rule["key"]) in rule["values"]
        if not fits:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def egress(overlay: str, stage: str) -> set[str]:
    """Return the policies that let a stage's pod out."""
    labels = {"stillhouse/stage": stage}
    return {
        policy["metadata"]["name"]
        for policy in of_kind(overlay, "NetworkPolicy")
        if policy["metadata"]["namespace"] == TASKS and selects(policy["spec"]["podSelector"], labels)
        if policy["spec"].get("egress")
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_stages_with_sources_reach_the_hub_and_only_generate_reaches_the_teacher(overlay: str) -> None:
    nothing = StageSpec.__dataclass_fields__["sources"].default
    # The policy that decide reads is a file of the image.
    with_sources = {name for name, spec in CATALOG.items() if spec.sources is not nothing} - {"decide"}
    everybody = {"name-service", "object-store", "mlflow"}
    extra = {name: {"sources"} for name in with_sources} | {"generate": {"teacher-api"}, "distill": {"distill-nodes"}}
    for name in (*STAGES, *COMMANDS):
        assert egress(overlay, name) == everybody | extra.get(name, set()), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_open_to_the_world_is_closed_to_private_networks_and_metadata_services(overlay: str) -> None:
    blocks = [
        (policy["metadata"]["name"], peer["ipBlock"])
        for policy in of_kind(overlay, "NetworkPolicy")
        for rule in policy["spec"].get("egress", ())
        for peer in rule["to"]
        if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"
    ]
    assert {name for name, _ in blocks} == {"sources", "teacher-api"}
    for _, block in blocks:
        assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(block["except"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_manifest_holds_the_value_of_a_secret(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == []
    for pod in pods(overlay):
        for container in pod["spec"]["containers"]:
            literal = {entry["name"] for entry in container.get("env", ()) if "value" in entry}
            assert not [name for name in literal if re.search(r"PASSWORD|SECRET|TOKEN|_URI|_KEY", name)]
    assert not re.search(r"://[^\s/:@]+:[^\s/:@]+@", render_text(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_what_the_restricted_standard_asks_for_and_more(overlay: str) -> None:
    for namespace in of_kind(overlay, "Namespace"):
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(overlay):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert not [volume for volume in spec.get("volumes", ()) if "hostPath" in volume]
        assert {"hostNetwork", "hostPID", "hostIPC"} & set(spec) == set()
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["runAsNonRoot"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_production_pins_every_image_by_digest() -> None:
    images = [container["image"] for pod in pods("overlays/production") for container in pod["spec"]["containers"]]
    runtime = deployment("overlays/production").runtime
    assert isinstance(runtime, TrainJobRuntime)
    assert runtime.gpu_image is not None
    assert all(DIGEST.search(image) for image in (*images, runtime.image, runtime.gpu_image))
    assert DIGEST.search(f"@{VALUES['images']['airflow']['digest']}")


def test_the_local_overlay_runs_what_make_images_builds() -> None:
    images = [container["image"] for pod in pods("overlays/local") for container in pod["spec"]["containers"]]
    runtime = deployment("overlays/local").runtime
    assert isinstance(runtime, PodRuntime)
    assert {*images, runtime.image} == {f"stillhouse-{name}:{version('stillhouse')}" for name in ("mlflow", "task")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_deployment_names_is_in_the_manifests(overlay: str) -> None:
    runtime = deployment(overlay).runtime
    assert isinstance(runtime, PodRuntime)
    assert runtime.namespace == TASKS
    assert runtime.service_account_prefix == "stillhouse-"
    assert named(overlay, "PriorityClass", str(runtime.priority_class))
    for volume in runtime.volumes:
        assert named(overlay, "PersistentVolumeClaim", volume.source)["metadata"]["namespace"] == TASKS
    if isinstance(runtime, TrainJobRuntime):
        assert named(overlay, "ClusterTrainingRuntime", runtime.training_runtime)
        assert named(overlay, "LocalQueue", str(runtime.queue))["metadata"]["namespace"] == TASKS
    shown = named(overlay, "ConfigMap", "stillhouse-deployment")
    assert shown["data"]["deployment.yaml"] == (MANIFESTS / overlay / "deployment.yaml").read_text()


def test_every_secret_that_production_names_is_filled_from_the_vault() -> None:
    filled = {
        (secret["metadata"]["namespace"], secret["metadata"]["name"], key)
        for secret in of_kind("overlays/production", "ExternalSecret")
        for key in (
            secret["spec"].get("target", {}).get("template", {}).get("data")
            or [entry["secretKey"] for entry in secret["spec"]["data"]]
        )
    }
    runtime = deployment("overlays/production").runtime
    assert isinstance(runtime, PodRuntime)
    wanted = {(TASKS, secret.name, secret.key) for secret in runtime.secrets.values()}
    container = named("overlays/production", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    references = [entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry]
    wanted |= {(SERVICES, reference["name"], reference["key"]) for reference in references}
    wanted |= {
        (SERVICES, VALUES["data"]["metadataSecretName"], "connection"),
        (SERVICES, VALUES["fernetKeySecretName"], "fernet-key"),
        (SERVICES, VALUES["apiSecretKeySecretName"], "api-secret-key"),
        (SERVICES, VALUES["jwtSecretName"], "jwt-secret"),
    }
    references = [entry["valueFrom"]["secretKeyRef"] for entry in yaml.safe_load(VALUES["extraEnv"])]
    wanted |= {(SERVICES, reference["name"], reference["key"]) for reference in references}
    assert wanted <= filled


def test_the_values_of_airflow_bring_no_default_user_database_or_key() -> None:
    assert VALUES["createUserJob"]["enabled"] is False
    assert VALUES["webserver"]["defaultUser"]["enabled"] is False
    assert VALUES["postgresql"]["enabled"] is False
    assert not {"fernetKey", "apiSecretKey", "jwtSecret", "webserverSecretKey", "extraSecrets"} & set(VALUES)
    assert "metadataConnection" not in VALUES["data"]
    for part in ("workers", "scheduler", "triggerer", "dagProcessor"):
        assert VALUES[part]["serviceAccount"] == {"create": False, "name": "stillhouse-airflow"}


def roles() -> dict[str, list[dict[str, Any]]]:
    """Return the statements of each role."""
    found = {}
    for line in (IAM / "roles.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        role, *policies = line.split()
        texts = [(IAM / f"{policy}.json").read_text() for policy in policies]
        stage = role.removeprefix("stillhouse-")
        found[role] = [s for text in texts for s in json.loads(text.replace("STAGE", stage))["Statement"]]
    return found


def may(statements: list[dict[str, Any]], action: str, key: str) -> bool:
    """Tell what IAM would: a denial wins, and without a permission there is none."""
    place = f"arn:aws:s3:::example-stillhouse/{key}"
    effects = {
        statement["Effect"]
        for statement in statements
        if any(fnmatch.fnmatchcase(action, pattern) for pattern in statement["Action"])
        if any(fnmatch.fnmatchcase(place, pattern) for pattern in statement["Resource"])
    }
    return effects == {"Allow"}


def test_every_account_has_its_own_role_at_the_cloud() -> None:
    given = {
        account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].rpartition("/")[2]
        for account in of_kind("overlays/production", "ServiceAccount")
    }
    assert given == set(roles())
    assert len(given) == len(of_kind("overlays/production", "ServiceAccount"))


def test_only_mlflow_writes_the_registry_and_only_promotions_write_the_ledger() -> None:
    for role, statements in roles().items():
        assert may(statements, "s3:PutObject", "registry/1/models/x") == (role == "stillhouse-mlflow"), role
        appends = may(statements, "s3:PutObject", "store/ledger/model/00000001.json")
        assert appends == (role in {"stillhouse-promote", "stillhouse-rollback", "stillhouse-reconcile"}), role
        assert not may(statements, "s3:DeleteObject", "store/ledger/model/00000001.json"), role


def test_a_stage_writes_its_own_results_and_no_other_stage_s() -> None:
    granted = roles()
    for stage in STAGES:
        statements = granted[f"stillhouse-{stage}"]
        assert may(statements, "s3:PutObject", f"store/stages/{stage}/key/result.json")
        assert may(statements, "s3:PutObject", "store/runs/run/tasks/task.json")
        assert may(statements, "s3:GetObject", "store/stages/validate/key/train.parquet")
        others = [other for other in STAGES if other != stage]
        assert not [o for o in others if may(statements, "s3:PutObject", f"store/stages/{o}/key/result.json")]
        assert may(statements, "s3:PutObject", "store/answers/ab/abc.json") == (stage == "generate")


def test_airflow_asks_records_and_probes_and_writes_no_result() -> None:
    statements = roles()["stillhouse-airflow"]
    for key in (f"{PROBES}/x", "runs/run/requests/task.json"):
        assert may(statements, "s3:PutObject", f"store/{key}")
    assert may(statements, "s3:DeleteObject", f"store/{PROBES}/x")
    assert may(statements, "s3:GetObject", "store/ledger/model/00000001.json")
    assert not may(statements, "s3:PutObject", "store/stages/teach/key/result.json")


def test_the_deployment_guide_names_every_file_that_must_be_edited() -> None:
    guide = (MANIFESTS / "README.md").read_text()
    placeholder = re.compile(r"sha256:0{64}|192\.0\.2\.|198\.51\.100\.|203\.0\.113\.|111122223333|example-stillhouse")
    edited = {
        path.relative_to(MANIFESTS)
        for path in MANIFESTS.rglob("*")
        if path.suffix in {".yaml", ".json"} and placeholder.search(path.read_text())
    }
    assert edited
    assert {path.parts[0] for path in edited} <= {"overlays", "values-airflow.yaml"}
    assert not [str(path) for path in edited if path.name not in guide and f"{path.parent.name}/" not in guide]


def test_base_and_components_hold_nothing_of_one_place() -> None:
    for path in (*Path(MANIFESTS, "base").rglob("*.yaml"), *Path(MANIFESTS, "components").rglob("*.yaml")):
        assert "example" not in path.read_text(), path
