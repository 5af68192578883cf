from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import Artifact, code_version, content_key, keys, sha256_of

PARTS: dict[str, Any] = {
    "stage": "distill",
    "code": "c" * 64,
    "recipe_part": {"distillation": {"alpha": 0.5}, "teacher": {"source": {"kind": "path", "path": "/a"}}},
    "parameters": {"arm": "kd"},
    "inputs": {"train": Artifact(uri="file:///store/train", sha256="a" * 64, num_bytes=1)},
    "sources": {"teacher": "d" * 64},
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("stage", "teach"),
        ("code", "e" * 64),
        ("recipe_part", {"distillation": {"alpha": 0.4}, "teacher": {"source": {"kind": "path", "path": "/a"}}}),
        ("recipe_part", {"distillation": {"alpha": 0.5}, "teacher": {"source": {"kind": "s3", "path": "/a"}}}),
        ("parameters", {"arm": "sft"}),
        ("parameters", {}),
        ("inputs", {}),
        ("inputs", {"train": Artifact(uri="file:///store/train", sha256="b" * 64, num_bytes=1)}),
        ("inputs", {"test": Artifact(uri="file:///store/train", sha256="a" * 64, num_bytes=1)}),
        ("sources", {"teacher": "e" * 64}),
        ("sources", {}),
    ],
)
def test_the_key_changes_with_every_part(part: str, value: Any) -> None:
    assert content_key(**PARTS | {part: value}) != content_key(**PARTS)


def test_the_same_bytes_elsewhere_are_the_same_input() -> None:
    moved = {"train": Artifact(uri="s3://bucket/other", sha256="a" * 64, num_bytes=1)}
    assert content_key(**PARTS | {"inputs": moved}) == content_key(**PARTS)


def test_moving_files_of_the_recipe_changes_nothing() -> None:
    moved = {"distillation": {"alpha": 0.5}, "teacher": {"source": {"kind": "path", "path": "/b"}}}
    assert content_key(**PARTS | {"recipe_part": moved}) == content_key(**PARTS)
    gates = [content_key(**PARTS | {"recipe_part": {"gate": {"policy": path}}}) for path in ("/a", "/b")]
    assert gates[0] == gates[1]


def test_paths_inside_lists_do_not_count_either() -> None:
    lists = [[{"table": {"source": {"kind": "path", "path": path}}}] for path in ("/a", "/b")]
    first, second = (content_key(**PARTS | {"recipe_part": {"data": {"ood": ood}}}) for ood in lists)
    assert first == second


@given(st.permutations(list(PARTS["recipe_part"].items())), st.integers(0, 2**63))
def test_the_key_depends_on_values_not_on_order(items: list[tuple[str, Any]], seed: int) -> None:
    parts = PARTS | {"recipe_part": dict(items), "parameters": {"seed": seed}}
    assert content_key(**parts) == content_key(**PARTS | {"parameters": {"seed": seed}})
    assert content_key(**parts) != content_key(**PARTS | {"parameters": {"seed": seed + 1}})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one room and one module whose code is digested instead of ours."""
    (tmp_path / "room" / "templates").mkdir(parents=True)
    (tmp_path / "room" / "__init__.py").write_text("one = 1\n")
    (tmp_path / "room" / "templates" / "page.j2").write_text("<p>\n")
    (tmp_path / "other.py").write_text("two = 2\n")
    monkeypatch.setattr(keys, "PACKAGE_ROOT", tmp_path)
    code_version.cache_clear()
    yield tmp_path
    code_version.cache_clear()


def _version(*places: str, distributions: tuple[str, ...] = ()) -> str:
    code_version.cache_clear()
    return code_version(places, distributions)


@pytest.mark.parametrize("file", ["room/__init__.py", "room/templates/page.j2"])
def test_the_code_version_changes_with_every_file_of_a_room(package: Path, file: str) -> None:
    before = _version("room")
    (package / file).write_text("changed\n")
    assert _version("room") != before


def test_the_code_version_changes_when_a_file_is_added_or_renamed(package: Path) -> None:
    before = _version("room")
    (package / "room" / "new.py").write_text("")
    added = _version("room")
    (package / "room" / "new.py").rename(package / "room" / "renamed.py")
    assert len({before, added, _version("room")}) == 3


def test_code_elsewhere_and_compiled_code_do_not_count(package: Path) -> None:
    before = _version("room")
    (package / "other.py").write_text("changed\n")
    (package / "room" / "__init__.cpython-311.pyc").write_bytes(b"x")
    assert _version("room") == before
    assert _version("room", "other") != before


def test_versions_of_libraries_count(package: Path) -> None:
    assert _version("room", distributions=("pydantic",)) != _version("room")
    assert _version("room", distributions=("no-such-distribution",)) != _version("room")


def test_a_place_that_does_not_exist_is_an_error(package: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _version("absent")


def test_our_own_rooms_have_a_version() -> None:
    assert code_version(("contract", "contract.keys"), ()) != sha256_of(b"")
