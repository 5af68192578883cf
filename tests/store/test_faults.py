"""Full disks, missing rights, absent servers: what each store says and leaves behind."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from proxies import fault_proxy
from servers import READER_KEY, READER_SECRET, Server

from stillhouse.contract import ConfigurationError, Conflict, NotPermitted, TryAgain
from stillhouse.store import FileStore, open_store
from stillhouse.store.atomic import remove_orphans


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def files_of(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and "locks" not in path.parts]


def test_a_full_disk_asks_to_try_again_and_keeps_the_old_object(small_disk: Path, tmp_path: Path) -> None:
    store = FileStore(small_disk)
    store.put("a/object", b"old")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 << 20))
    with pytest.raises(TryAgain, match="the disk is full") as caught:
        store.put_file("a/object", source)
    assert str(small_disk / "a/object") in str(caught.value)
    with pytest.raises(TryAgain, match="the disk is full"):
        store.put_if("other", source.read_bytes(), version=None)
    assert store.get("a/object") == b"old"
    assert files_of(small_disk) == ["object"]


def test_a_download_to_a_full_disk_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    store.put("big", os.urandom(2 << 20))
    with pytest.raises(TryAgain, match="the disk is full"):
        store.get_file("big", small_disk / "target")
    assert files_of(small_disk) == []


def test_an_s3_download_to_a_full_disk_leaves_nothing(small_disk: Path, bucket: str) -> None:
    store = open_store(f"s3://{bucket}")
    store.put("too-big", os.urandom(2 << 20))
    with pytest.raises(TryAgain, match="the disk is full"):
        store.get_file("too-big", small_disk / "target")
    assert files_of(small_disk) == []


def test_a_read_only_folder_is_not_permitted(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        with pytest.raises(NotPermitted, match="read-only"):
            FileStore(folder).put("a", b"1")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_leftovers_of_killed_writers_are_removed_but_not_files_in_use(tmp_path: Path) -> None:
    import fcntl

    old = time.time() - 3600
    for name in ("unfinished-orphan", "unfinished-used"):
        (tmp_path / name).write_bytes(b"part")
        os.utime(tmp_path / name, (old, old))
    with (tmp_path / "unfinished-used").open("rb") as used:
        fcntl.flock(used, fcntl.LOCK_EX)
        remove_orphans(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished-used"]


@pytest.mark.parametrize("root", ["relative", "file://relative", "ftp://host/x", "s3://", "s3:///x", "s3://b//x"])
def test_roots_of_no_known_form_are_refused(root: str, s3_environment: Server, tmp_path: Path) -> None:
    if root == "relative":
        assert open_store(root).root == f"file://{Path('relative').resolve()}"
        return
    with pytest.raises(ConfigurationError):
        open_store(root)


def test_a_missing_bucket_is_a_wrong_setting(s3_environment: Server, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket/prefix")
    # Writes are left out: SeaweedFS says AccessDenied to a writer who may not create the bucket.
    for call in (
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: store.keys(),
        lambda: store.get_file("a", tmp_path / "file"),
    ):
        with pytest.raises(ConfigurationError, match="bucket does not exist"):
            call()


def test_wrong_credentials_are_not_permitted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(f"s3://{bucket}")
    for call in (lambda: store.put("a", b"1"), lambda: store.get("a"), lambda: store.exists("a"), lambda: store.keys()):
        with pytest.raises(NotPermitted, match="credentials"):
            call()


def test_a_reader_may_not_write(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    open_store(f"s3://{bucket}").put("for-readers", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    store = open_store(f"s3://{bucket}")
    assert store.get("for-readers") == b"1"
    file = tmp_path / "file"
    file.write_bytes(b"1")
    for call in (
        lambda: store.put("b", b"1"),
        lambda: store.put_if("b", b"1", version=None),
        lambda: store.put_file("b", file),
        lambda: store.delete("for-readers"),
    ):
        with pytest.raises(NotPermitted):
            call()


def test_absent_credentials_are_not_permitted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(NotPermitted, match="AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{bucket}").get("a")


def test_an_absent_server_asks_to_try_again(s3_environment: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed.getsockname()[1]}")
        store = open_store("s3://bucket")
        for call in (lambda: store.put("a", b"1"), lambda: store.get("a"), lambda: store.keys()):
            with pytest.raises(TryAgain, match="does not answer"):
                call()


def test_a_wrong_endpoint_is_a_wrong_setting(s3_environment: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "not a url")
    with pytest.raises(ConfigurationError, match="AWS settings"):
        open_store("s3://bucket")


def test_a_write_whose_answer_was_lost_is_no_conflict_with_itself(
    bucket: str, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(s3.url, {"do": "drop-after"}) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        store = open_store(f"s3://{bucket}/lost")
        version = store.put_if("k", b"mine", version=None)
        assert [request.method for request in proxy.requests] == ["PUT", "PUT", "GET"]
        assert store.get_versioned("k") == (b"mine", version)
        with pytest.raises(Conflict):
            store.put_if("k", b"mine", version=None)


def test_folder_markers_of_other_tools_are_no_objects(bucket: str, s3: Server) -> None:
    client = boto3.client("s3", endpoint_url=s3.url, region_name="us-east-1")
    client.put_object(Bucket=bucket, Key="folder-marker/", Body=b"")
    assert open_store(f"s3://{bucket}").keys("folder-marker") == []
