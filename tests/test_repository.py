"""Rules of the house that no linter knows."""

import subprocess
import sys
from pathlib import Path

import pytest

import stillhouse

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tasks" / "stillhouse"
TOP_LEVEL = {
    ".ci", ".dockerignore", ".gitignore", "ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "Makefile", "README.md",
    "benchmarks", "dags", "docker", "infra", "mlflow", "pyproject.toml", "tasks", "tests",
}  # fmt: skip


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).exists()]


def test_the_top_level_is_the_one_that_users_know() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in tracked_files()} <= TOP_LEVEL


@pytest.mark.parametrize("folder", ["mlflow", "docker"])
def test_folders_named_like_packages_hold_no_python(folder: str) -> None:
    assert list((ROOT / folder).rglob("*.py")) == []


def test_the_real_mlflow_is_imported_from_the_project_root() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('mlflow').origin)"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "site-packages" in found


def test_modules_stay_small() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path.name: n for path, n in lines.items() if n > 400} == {}
    machinery = {"runner.py", "catalog.py", "context.py"}
    stages = {path: n for path, n in lines.items() if path.parent.name == "stages" and path.name not in machinery}
    assert {path.name: n for path, n in stages.items() if n > 120} == {}


def test_committed_files_name_no_path_of_a_machine() -> None:
    marks = ("/home/", "/root/", "/work/main")
    texts = [p for p in tracked_files() if p.suffix in {".py", ".md", ".yaml", ".toml", ".sh", ".j2", ""}]
    found = {
        str(path.relative_to(ROOT))
        for path in texts
        if path != Path(__file__) and any(mark in path.read_text(errors="ignore") for mark in marks)
    }
    assert found == set()


def test_the_version_is_the_installed_one() -> None:
    assert stillhouse.__version__.count(".") == 2
