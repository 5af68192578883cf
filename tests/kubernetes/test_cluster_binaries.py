"""Where ``infra/cluster.sh`` takes its binaries from. It needs no cluster."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "pause")
FIND = f"""
set -euo pipefail
fail() {{ echo "$2" >&2; exit "$1"; }}
source {ROOT}/infra/cluster/binaries.sh
find_binaries
"""


def find(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the search with ``folder`` as the project, the state and the home."""
    kept = {"PATH": os.environ["PATH"], "HOME": str(folder), "state": str(folder / "state")}
    command = ["bash", "-c", FIND]
    return subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False)


def binaries(folder: Path, names: tuple[str, ...] = NAMES) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return folder


def test_a_folder_that_is_named_goes_first(tmp_path: Path) -> None:
    binaries(tmp_path / ".run/cache/kubernetes")
    given = binaries(tmp_path / "given")
    assert find(tmp_path, STILLHOUSE_KUBERNETES=str(given)).stdout.strip() == str(given)


@pytest.mark.parametrize("cache", [".run/cache/kubernetes", ".cache/stillhouse/kubernetes"])
def test_caches_are_looked_into(tmp_path: Path, cache: str) -> None:
    folder = binaries(tmp_path / cache)
    assert find(tmp_path).stdout.strip() == str(folder)


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    binaries(tmp_path / "packed" / "bin")
    archive = tmp_path / "kubernetes.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "packed", "bin"], check=True)
    first, second = (find(tmp_path, STILLHOUSE_KUBERNETES=str(archive)).stdout.strip() for _ in range(2))
    assert first == second
    assert {path.name for path in Path(first).iterdir()} == set(NAMES)


@pytest.mark.parametrize("names", [NAMES[1:], None])
def test_what_is_named_must_be_complete(tmp_path: Path, names: tuple[str, ...] | None) -> None:
    given = tmp_path / "given"
    if names is not None:
        binaries(given, names)
    found = find(tmp_path, STILLHOUSE_KUBERNETES=str(given))
    assert found.returncode == 78
    assert str(given) in found.stderr
