"""Completes an image's bill of materials: ``python infra/bill.py TAG PACKAGES DEBIAN > NAME.cdx.json``.

``PACKAGES`` is what cyclonedx-bom says about the image's Python packages, ``DEBIAN`` what ``dpkg-query`` lists there as
lines of name, version and architecture between tabs. Added are Debian's packages, and the image itself with its id and
its size in bytes. Needs no package beyond Python's own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote


def complete(bill: dict[str, Any], *, tag: str, image: dict[str, Any], debian: list[str]) -> dict[str, Any]:
    """Return ``bill`` (CycloneDX JSON) with the image as its subject, and with Debian's packages.

    Args:
        bill: Of the Python packages.
        tag: Of the image, as NAME:VERSION.
        image: What ``docker image inspect`` tells.
        debian: Lines ``NAME<tab>VERSION<tab>ARCHITECTURE``.
    """
    name, _, release = tag.partition(":")
    told = {"stillhouse:image:id": image["Id"], "stillhouse:image:bytes": str(image["Size"])}
    subject = {
        "type": "container",
        "bom-ref": tag,
        "name": name,
        "version": release,
        "properties": [{"name": key, "value": value} for key, value in told.items()],
    }
    components = [*bill["components"], *(_debian(*line.split("\t")) for line in debian)]
    return bill | {"metadata": bill["metadata"] | {"component": subject}, "components": components}


def _debian(name: str, release: str, architecture: str) -> dict[str, str]:
    purl = f"pkg:deb/debian/{name}@{quote(release, safe='.-~')}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": release, "purl": purl}


def main(tag: str, packages: str, debian: str) -> None:
    """Print the completed bill of the image ``tag``, which is in the Docker engine."""
    told = subprocess.run(["docker", "image", "inspect", tag], capture_output=True, check=True).stdout
    bill = complete(
        json.loads(Path(packages).read_text(encoding="utf-8")),
        tag=tag,
        image=json.loads(told)[0],
        debian=Path(debian).read_text(encoding="utf-8").splitlines(),
    )
    sys.stdout.write(json.dumps(bill, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
