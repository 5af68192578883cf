"""The Docker engine that answers here, and the images that ``make images`` left in it."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import pytest

from stillhouse.contract import code_version
from stillhouse.contract.keys import PACKAGE_ROOT

ROOT = Path(__file__).parents[1]
REQUIRED = "STILLHOUSE_CLUSTER_REQUIRED"
"""Set to 1 in CI: there, an engine or an image that is missing is a failure."""

HARDENED = (
    *("--read-only", "--tmpfs", "/tmp:mode=1777", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--pids-limit", "512", "--memory", "3g"),
)
"""Options of ``docker run`` under which every image must work."""

_ROOMS = tuple(sorted(path.parent.name for path in PACKAGE_ROOT.glob("*/__init__.py")))
_SOURCES = f"from stillhouse.contract import code_version; print(code_version({_ROOMS!r}, ()))"


def docker(*arguments: str, check: bool = True) -> str:
    """Return what ``docker`` prints; with ``check`` it must succeed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"docker {' '.join(arguments)}: {done.stderr[-2000:]}"
    return done.stdout


def run_hardened(image: str, *command: str, options: tuple[str, ...] = ()) -> str:
    """Run ``command`` in place of the image's entry point, without network or rights, and return what it prints."""
    places = ("--rm", "--network", "none", *HARDENED, *options)
    return docker("run", *places, "--entrypoint", command[0], image, *command[1:])


@pytest.fixture(scope="session")
def docker_engine() -> str:
    """Return the address of the engine, for ``DOCKER_HOST``."""
    status = subprocess.run([ROOT / "infra/engine.sh", "status"], capture_output=True, text=True, check=False)
    if status.returncode != 0:
        _missing(status.stderr.strip())
    address = status.stdout.rpartition("DOCKER_HOST=")[2].strip()
    os.environ["DOCKER_HOST"] = address
    return address


@pytest.fixture(scope="session")
def task_image(docker_engine: str) -> str:
    """Return the tag of the image that runs stages, with the sources that are tested here."""
    return _with_these_sources(_image("task"))


@pytest.fixture(scope="session")
def airflow_image(docker_engine: str) -> str:
    """Return the tag of Airflow's image, with the sources that are tested here."""
    return _with_these_sources(_image("airflow"))


@pytest.fixture(scope="session")
def mlflow_image(docker_engine: str) -> str:
    """Return the tag of the MLflow server's image."""
    return _image("mlflow")


def _image(name: str) -> str:
    tag = f"stillhouse-{name}:{version('stillhouse')}"
    if not docker("image", "ls", "--quiet", tag).strip():
        _missing(f"no image {tag} in the Docker engine; build it: make images")
    return tag


def _with_these_sources(image: str) -> str:
    if run_hardened(image, "python", "-c", _SOURCES).strip() != code_version(_ROOMS, ()):
        _missing(f"{image} holds other sources than this folder; build it anew: make images")
    return image


def _missing(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
