"""Content keys: two requests with the same key have the same result, so the work is never paid for twice."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import stillhouse
from stillhouse.contract.canonical import canonical_json, sha256_of
from stillhouse.contract.stage import Artifact

PACKAGE_ROOT = Path(stillhouse.__file__).parent


@cache
def code_version(places: tuple[str, ...], distributions: tuple[str, ...]) -> str:
    """Digest the code that can change a stage's result.

    Args:
        places: Packages or modules below ``stillhouse``, such as ``losses`` or ``stages.distill``. All their files
            count, templates too.
        distributions: Installed distributions whose versions count, such as ``torch``.

    Raises:
        FileNotFoundError: A place does not exist.
    """
    files: dict[str, str] = {}
    for place in places:
        path = PACKAGE_ROOT.joinpath(*place.split("."))
        found = sorted(path.rglob("*")) if path.is_dir() else [path.with_suffix(".py")]
        for file in found:
            if file.suffix != ".pyc" and not file.is_dir():
                files[file.relative_to(PACKAGE_ROOT).as_posix()] = sha256_of(file.read_bytes())
    return sha256_of(canonical_json({"files": files, "versions": {d: _version(d) for d in distributions}}))


def content_key(
    *,
    stage: str,
    code: str,
    recipe_part: Mapping[str, Any],
    parameters: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    sources: Mapping[str, str],
) -> str:
    """Digest everything that a stage's result depends on.

    Args:
        stage: The stage's name.
        code: See `code_version`.
        recipe_part: The sections of the recipe that the stage reads, as plain data. Paths in them don't count: moving
            a file changes nothing.
        parameters: What sets the task apart from others of its stage.
        inputs: Artifacts by name. Only their digests count: the same bytes elsewhere are the same input.
        sources: Digests of the files outside the store that the stage reads, by name.
    """
    return sha256_of(
        canonical_json(
            {
                "stage": stage,
                "code": code,
                "recipe": _without_paths(recipe_part),
                "parameters": parameters,
                "inputs": {name: artifact.sha256 for name, artifact in inputs.items()},
                "sources": sources,
            }
        )
    )


def _without_paths(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_without_paths(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    dropped = {"policy"} | ({"path"} if node.get("kind") == "path" else set())
    return {key: _without_paths(value) for key, value in node.items() if key not in dropped}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"
