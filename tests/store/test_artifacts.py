"""Artifacts are what they were, or the difference is named."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.contract import ConfigurationError, DataRejected, IntegrityError, sha256_of
from stillhouse.store import (
    ObjectStore,
    fetch_artifact,
    open_store,
    read_artifact,
    save_bytes,
    save_file,
    save_tree,
    verify_artifact,
)
from stillhouse.store.trees import MANIFEST, describe_tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "deep/er/file").write_bytes(b"")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_files_come_back_verified(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"hello")
    artifact = save_file(store, "out/file.txt", path)
    assert artifact == save_bytes(store, "out/file.txt", b"hello")
    assert (artifact.sha256, artifact.num_bytes) == (sha256_of(b"hello"), 5)
    assert read_artifact(artifact) == b"hello"
    fetched = fetch_artifact(artifact, tmp_path / "cache")
    assert (fetched.name, fetched.read_bytes()) == ("file.txt", b"hello")
    assert verify_artifact(artifact)


def test_folders_come_back_verified(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    artifact = save_tree(store, "out/model", folder)
    assert artifact.num_bytes == 1002
    for _ in range(2):
        assert contents(fetch_artifact(artifact, tmp_path / "cache")) == contents(folder)
    assert verify_artifact(artifact)


def test_a_fetched_folder_can_be_kept_again_under_the_same_digest(
    store: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    artifact = save_tree(store, "a", folder)
    fetched = fetch_artifact(artifact, tmp_path / "cache")
    assert describe_tree(fetched).sha256 == artifact.sha256


def test_the_same_files_have_the_same_digest_wherever_they_are(store: ObjectStore, folder: Path) -> None:
    assert save_tree(store, "a", folder).sha256 == save_tree(store, "b", folder).sha256


@pytest.mark.parametrize("size", ["same size", "other size"])
def test_a_changed_file_is_named(store: ObjectStore, folder: Path, tmp_path: Path, size: str) -> None:
    artifact = save_tree(store, "m", folder)
    store.put("m/weights", b"v" * (1000 if size == "same size" else 999))
    with pytest.raises(IntegrityError, match="m/weights differs"):
        fetch_artifact(artifact, tmp_path / "cache")
    if store.root.startswith("file") or size == "other size":
        assert not verify_artifact(artifact)


def test_missing_and_added_files_are_named(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    artifact = save_tree(store, "m", folder)
    store.put("m/extra", b"")
    with pytest.raises(IntegrityError, match="m/extra does not belong there"):
        fetch_artifact(artifact, tmp_path / "cache")
    assert not verify_artifact(artifact)
    store.delete("m/extra")
    store.delete("m/deep/er/file")
    with pytest.raises(IntegrityError, match="m/deep/er/file is missing"):
        fetch_artifact(artifact, tmp_path / "cache")
    assert not verify_artifact(artifact)


def test_a_changed_or_missing_manifest_is_named(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    artifact = save_tree(store, "m", folder)
    store.put(f"m/{MANIFEST}", b"{}")
    with pytest.raises(IntegrityError, match=MANIFEST):
        fetch_artifact(artifact, tmp_path / "cache")
    store.delete(f"m/{MANIFEST}")
    with pytest.raises(IntegrityError, match=f"{MANIFEST} is missing"):
        fetch_artifact(artifact, tmp_path / "cache")
    assert not verify_artifact(artifact)


def test_a_changed_or_missing_object_is_named(store: ObjectStore, tmp_path: Path) -> None:
    artifact = save_bytes(store, "one", b"1")
    store.put("one", b"2")
    for read in (read_artifact, lambda a: fetch_artifact(a, tmp_path / "cache")):
        with pytest.raises(IntegrityError, match="one differs"):
            read(artifact)
    store.delete("one")
    for read in (read_artifact, lambda a: fetch_artifact(a, tmp_path / "cache")):
        with pytest.raises(IntegrityError, match="one is missing"):
            read(artifact)
    assert not verify_artifact(artifact)


def test_saving_again_leaves_no_stale_files(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    save_tree(store, "m", folder)
    (folder / "weights").unlink()
    artifact = save_tree(store, "m", folder)
    assert store.keys("m/") == [f"m/{MANIFEST}", "m/config.json", "m/deep/er/file"]
    assert contents(fetch_artifact(artifact, tmp_path / "cache")) == contents(folder)


def test_a_damaged_cache_is_downloaded_again(bucket: str, folder: Path, tmp_path: Path) -> None:
    artifact = save_tree(open_store(f"s3://{bucket}/cache"), "m", folder)
    fetched = fetch_artifact(artifact, tmp_path / "cache")
    (fetched / "weights").write_bytes(b"damaged")
    assert contents(fetch_artifact(artifact, tmp_path / "cache")) == contents(folder)


def test_what_is_no_plain_file_is_refused_by_name(store: ObjectStore, folder: Path) -> None:
    (folder / "link").symlink_to(folder / "weights")
    with pytest.raises(DataRejected, match="link: symbolic links"):
        save_tree(store, "m", folder)
    (folder / "link").unlink()
    (folder / MANIFEST).write_bytes(b"")
    with pytest.raises(DataRejected, match="reserved"):
        save_tree(store, "m", folder)


def test_an_empty_folder_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="no files"):
        save_tree(store, "m", tmp_path)


def test_a_folder_is_not_read_as_a_file(store: ObjectStore, folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        read_artifact(save_tree(store, "m", folder))


@given(files=st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=50), min_size=1))
def test_the_digest_depends_on_names_and_bytes_only(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    first, second = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("tree")
    for name, data in files.items():
        (first / name).write_bytes(data)
    for name, data in reversed(files.items()):
        (second / name).write_bytes(data)
    assert describe_tree(first).sha256 == describe_tree(second).sha256
    name = next(iter(files))
    (second / name).write_bytes(files[name] + b"!")
    assert describe_tree(first).sha256 != describe_tree(second).sha256
