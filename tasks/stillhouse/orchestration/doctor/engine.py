"""The Docker engine of runtime ``docker``."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stillhouse.orchestration.doctor.finding import Finding
from stillhouse.orchestration.runtimes import ContainerRuntime, DockerRuntime

if TYPE_CHECKING:
    from docker import DockerClient

SECONDS_FOR_ANSWER = 15


def examine_engine(runtime: DockerRuntime) -> Iterator[Finding]:
    """Ask the engine for itself, the images and the network of tasks; look for the variables that are handed on."""
    try:
        import docker
        from docker.errors import DockerException
    except ImportError:
        yield Finding(subject="Docker", found="its client is missing", remedy="pip install 'stillhouse[docker]'")
        return
    try:
        client = docker.DockerClient(base_url=runtime.url, timeout=SECONDS_FOR_ANSWER)
        try:
            version = client.version()
            yield Finding(subject="Docker", found=f"engine {version['Version']} at {runtime.url}")
            yield from _images(client, runtime)
            yield from _network(client, runtime)
        finally:
            client.close()
    except (DockerException, OSError) as error:
        yield Finding(
            subject="Docker",
            found=runtime.url,
            remedy=f"no engine answers there ({type(error).__name__}): start it, give this user access, or correct "
            "runtime.url",
        )
    yield from _variables(runtime)


def check_pins(runtime: ContainerRuntime) -> Iterator[Finding]:
    """Say which images could change under a running workflow, or differ between machines."""
    for image in filter(None, dict.fromkeys((runtime.image, runtime.gpu_image))):
        pinned = "@sha256:" in image
        yield Finding(
            subject="image",
            found=image if pinned else f"{image}: a tag may move",
            remedy="" if pinned else "name it by digest: NAME@sha256:…",
            grave=False,
        )


def _images(client: "DockerClient", runtime: DockerRuntime) -> Iterator[Finding]:
    from docker.errors import ImageNotFound

    yield from check_pins(runtime)
    for image in filter(None, dict.fromkeys((runtime.image, runtime.gpu_image))):
        try:
            found = client.images.get(image)
            yield Finding(subject="image", found=f"{image} is here: {found.id[:19]}…")
        except ImageNotFound:
            remedy = f"docker pull {image}, or build it: make images"
            yield Finding(subject="image", found=f"{image} is not on this engine", remedy=remedy)


def _network(client: "DockerClient", runtime: DockerRuntime) -> Iterator[Finding]:
    from docker.errors import NotFound

    try:
        client.networks.get(runtime.network)
        yield Finding(subject="network", found=f"{runtime.network} is there")
    except NotFound:
        remedy = f"docker network create {runtime.network}, or correct runtime.network"
        yield Finding(subject="network", found=f"{runtime.network} is missing", remedy=remedy)


def _variables(runtime: DockerRuntime) -> Iterator[Finding]:
    wanted = runtime.secret_variables
    missing = [name for name in wanted if not os.environ.get(name)]
    if wanted:
        yield Finding(
            subject="secrets",
            found=f"{len(wanted) - len(missing)} of {len(wanted)} variables are set",
            remedy=f"set {', '.join(missing)} in Airflow's environment" if missing else "",
        )
