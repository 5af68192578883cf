"""A store in a bucket, behind a network and a server that fail: it recovers, or says on one line what to do.

The server is a real one; the harm is done by a proxy, by killed processes and by a full disk.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from proxies import NOTHING, Fault, Proxy, Request
from servers import Server, s3_server

from stillhouse.contract import ConfigurationError, IntegrityError, NotPermitted, StillhouseError, TryAgain
from stillhouse.recipe import S3Source
from stillhouse.store import ObjectStore, fetch_artifact, fetch_source, open_store, save_file, save_tree
from stillhouse.store import s3 as s3_module
from stillhouse.store.s3 import S3Store

PART = 5 << 20
LARGE = 11 << 20
"""Three parts."""
BUSY: Fault = {"status": 503, "code": "SlowDown"}
Harm = Callable[..., Proxy]


def writes(request: Request) -> bool:
    return request.method in ("PUT", "POST")


def reads(request: Request) -> bool:
    return request.method == "GET"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send in parts what would go at once: parts as small as S3 allows."""
    monkeypatch.setattr(s3_module, "_TRANSFER", TransferConfig(multipart_threshold=PART, multipart_chunksize=PART))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(os.urandom(LARGE))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture
def store(bucket: str) -> ObjectStore:
    """The store without any harm, opened before it."""
    return open_store(f"s3://{bucket}")


@pytest.fixture
def name(store: ObjectStore) -> Iterator[str]:
    """A key of the test's own."""
    key = f"faults/{uuid.uuid4().hex}/object"
    yield key
    for left in store.keys(key.rpartition("/")[0]):
        store.delete(left)


def unfinished(store: ObjectStore, key: str) -> list[str]:
    """Return the ids of uploads in parts that are open at the server."""
    assert isinstance(store, S3Store)
    found = store._client.list_multipart_uploads(Bucket=store._bucket).get("Uploads", [])
    return [upload["UploadId"] for upload in found if upload["Key"] == key]


def on_one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert text.startswith("s3://")
    assert ";" in text, "what to do is missing"
    return text


@pytest.mark.parametrize("do", ["drop", "drop-after", "cut-upload", "corrupt-upload"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_an_upload_harmed_once_arrives_whole(
    store: ObjectStore, name: str, harmed: Harm, do: str, size: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(size)
    script = [{}, {"do": do}] if size == "large" else [{"do": do}]  # the first write of a large file begins it
    harmed(*script, harms=writes)
    open_store(store.root).put_file(name, path)
    assert store.get(name) == path.read_bytes()
    assert unfinished(store, name) == []


@pytest.mark.parametrize("do", ["drop", "cut-upload", "corrupt-upload"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_an_upload_harmed_for_good_leaves_the_old_object_and_no_parts(
    store: ObjectStore, name: str, harmed: Harm, do: str, size: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(size)
    store.put(name, b"old")
    harmed({}, then={"do": do}, harms=lambda request: request.method == "PUT")
    if size == "small":
        open_store(store.root).put("faults/other", b"takes the harmless turn")
    with pytest.raises(TryAgain) as caught:
        open_store(store.root).put_file(name, path)
    on_one_line(caught.value)
    assert store.get(name) == b"old"
    assert unfinished(store, name) == []


@pytest.mark.parametrize("do", ["cut-download", "short-download", "corrupt-download", "paced"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_download_harmed_once_arrives_whole(
    store: ObjectStore, name: str, harmed: Harm, do: str, size: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(size)
    store.put_file(name, path)
    harmed({"do": do}, harms=reads)
    open_store(store.root).get_file(name, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("do", "error"),
    [("cut-download", TryAgain), ("short-download", IntegrityError), ("corrupt-download", IntegrityError)],
)
@pytest.mark.parametrize("size", ["small", "large"])
def test_a_download_harmed_for_good_leaves_nothing(
    store: ObjectStore,
    name: str,
    harmed: Harm,
    do: str,
    error: type[StillhouseError],
    size: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    store.put_file(name, request.getfixturevalue(size))
    harmed(then={"do": do}, harms=reads)
    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(error) as caught:
        open_store(store.root).get_file(name, folder / "target")
    assert on_one_line(caught.value)
    assert list(folder.iterdir()) == []


def test_objects_read_into_memory_are_read_again_when_they_break_off(
    store: ObjectStore, name: str, harmed: Harm
) -> None:
    store.put(name, b"0123456789")
    proxy = harmed({"do": "cut-download"}, {"do": "corrupt-download"}, harms=reads)
    assert open_store(store.root).get(name) == b"0123456789"
    assert proxy.seen == 3


def test_an_object_replaced_while_it_is_read_is_never_a_mixture(
    store: ObjectStore, name: str, large: Path, harmed: Harm, tmp_path: Path
) -> None:
    other = os.urandom(LARGE)
    (tmp_path / "other").write_bytes(other)
    store.put_file(name, large)
    harmed({"after": lambda: store.put_file(name, tmp_path / "other")}, harms=reads)
    open_store(store.root).get_file(name, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() in (other, large.read_bytes())


def test_a_source_is_not_taken_from_a_damaged_download(
    store: ObjectStore, name: str, large: Path, harmed: Harm, tmp_path: Path
) -> None:
    store.put_file(name, large)
    harmed({}, then={"do": "corrupt-download"}, harms=lambda request: reads(request) and name in request.path)
    source = S3Source(kind="s3", uri=f"{store.root}/{name}")
    with pytest.raises(IntegrityError):
        fetch_source(source, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("object"))


def test_a_folder_is_fetched_whole_or_not_at_all(store: ObjectStore, name: str, harmed: Harm, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(3):
        (folder / str(number)).write_bytes(os.urandom(1000))
    artifact = save_tree(store, name, folder)
    proxy = harmed({}, {}, then=BUSY, harms=reads)
    with pytest.raises(TryAgain):
        fetch_artifact(artifact, tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    proxy.then = NOTHING
    assert (fetch_artifact(artifact, tmp_path / "cache") / "2").read_bytes() == (folder / "2").read_bytes()


def test_a_short_storm_is_ridden_out(store: ObjectStore, name: str, harmed: Harm) -> None:
    proxy = harmed(*[BUSY] * 3)
    open_store(store.root).put(name, b"1")
    assert proxy.seen == 4
    assert store.get(name) == b"1"


def test_a_long_storm_asks_to_try_again_and_leaves_no_parts(
    store: ObjectStore, name: str, large: Path, harmed: Harm
) -> None:
    proxy = harmed({}, then=BUSY, harms=writes)
    for _ in range(2):  # the first begins an upload in parts, the second can't
        with pytest.raises(TryAgain, match="SlowDown") as caught:
            open_store(store.root).put_file(name, large)
        on_one_line(caught.value)
    assert unfinished(store, name) == []
    proxy.then = NOTHING
    open_store(store.root).put_file(name, large)
    assert store.get(name) == large.read_bytes()


def test_a_server_that_was_away_is_used_again(store: ObjectStore, name: str, harmed: Harm) -> None:
    proxy = harmed()
    here = open_store(store.root)
    proxy.away = True
    for call in (lambda: here.put(name, b"1"), lambda: here.get(name), lambda: here.keys("faults")):
        with pytest.raises(TryAgain, match="does not answer"):
            call()
    proxy.away = False
    here.put(name, b"1")
    assert here.get(name) == b"1"


def test_a_server_that_hangs_is_given_up(
    store: ObjectStore, name: str, harmed: Harm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_module, "_READ_SECONDS", 0.2)
    proxy = harmed(then={"do": "stall"})
    with pytest.raises(TryAgain, match="does not answer"):
        open_store(store.root).get(name)
    assert proxy.seen == 4


REFUSALS = [
    ({"status": 400, "code": "ExpiredToken"}, NotPermitted, "check the credentials"),
    ({"status": 400, "code": "InvalidToken"}, NotPermitted, "check the credentials"),
    ({"status": 403, "code": "InvalidAccessKeyId"}, NotPermitted, "check the credentials"),
    ({"status": 403, "code": "RequestTimeTooSkewed"}, TryAgain, "clock"),
    ({"status": 403, "code": "QuotaExceeded"}, TryAgain, "full"),
    ({"status": 507, "code": "XMinioStorageFull"}, TryAgain, "full"),
    ({"status": 200, "code": "a page of another server"}, ConfigurationError, "no S3 server"),
    ({"status": 301, "code": "x", "headers": {"location": "http://127.0.0.1:9/"}}, ConfigurationError, "no S3 server"),
]


@pytest.mark.parametrize(("fault", "error", "words"), REFUSALS, ids=[str(case[0]["code"]) for case in REFUSALS])
def test_refusals_say_what_to_do(
    store: ObjectStore,
    name: str,
    harmed: Harm,
    small: Path,
    fault: Fault,
    error: type[StillhouseError],
    words: str,
) -> None:
    store.put(name, b"old")
    harmed(then=fault)
    here = open_store(store.root)
    for call in (lambda: here.put(name, b"new"), lambda: here.get(name), lambda: here.put_if(name, b"n", version="v")):
        with pytest.raises(error, match=words) as caught:
            call()
        on_one_line(caught.value)
    assert store.get(name) == b"old"


def test_credentials_that_expire_amid_an_upload_leave_parts_for_the_next_to_remove(
    store: ObjectStore, name: str, large: Path, harmed: Harm
) -> None:
    proxy = harmed({}, then={"status": 400, "code": "ExpiredToken"}, harms=lambda request: not reads(request))
    with pytest.raises(NotPermitted):
        open_store(store.root).put_file(name, large)
    assert len(unfinished(store, name)) == 1  # whoever may do nothing any more can't clean up either
    proxy.then = NOTHING
    open_store(store.root).put_file(name, large)
    assert unfinished(store, name) == []
    assert store.get(name) == large.read_bytes()


def test_a_writer_whose_parts_were_removed_is_told_to_try_again(
    store: ObjectStore, name: str, large: Path, harmed: Harm
) -> None:
    harmed({"after": lambda: store.put_file(name, large)}, harms=lambda request: request.method == "POST")
    with pytest.raises(TryAgain, match="another writer"):
        open_store(store.root).put_file(name, large)
    assert store.get(name) == large.read_bytes()
    assert unfinished(store, name) == []


def test_a_clock_that_is_wrong_is_told_apart_from_a_wrong_key(
    store: ObjectStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = botocore.auth.get_current_datetime

    def yesterday(remove_tzinfo: bool = True) -> datetime:
        return now(remove_tzinfo) - timedelta(days=1)

    with monkeypatch.context() as wrong:
        wrong.setattr(botocore.auth, "get_current_datetime", yesterday)
        with pytest.raises(TryAgain, match="clock differs"):
            store.put(name, b"1")


WRITER = """
import sys
from pathlib import Path
from boto3.s3.transfer import TransferConfig
from stillhouse.store import open_store, s3
s3._TRANSFER = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
open_store(sys.argv[1]).put_file(sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.parametrize("write", [1, 3, 4], ids=["begun", "two parts", "all parts"])
def test_a_writer_killed_amid_its_parts_leaves_the_old_object_and_the_next_one_removes_them(
    store: ObjectStore, name: str, large: Path, harmed: Harm, write: int
) -> None:
    store.put(name, b"old")
    writer: list[subprocess.Popen[bytes]] = []
    kill = {"after": lambda: writer[0].kill()}
    harmed(*[NOTHING] * (write - 1), kill, harms=writes)
    writer.append(subprocess.Popen([sys.executable, "-c", WRITER, store.root, name, str(large)]))
    assert writer[0].wait(timeout=120) == -9
    assert store.get(name) == b"old"
    assert len(unfinished(store, name)) == 1
    store.put_file(name, large)
    assert unfinished(store, name) == []
    assert store.get(name) == large.read_bytes()


RACER = """
import sys
from stillhouse.contract import Conflict, exit_code_of
from stillhouse.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    store.put_if(sys.argv[2], sys.argv[3].encode(), version=sys.argv[4] or None)
except Conflict as error:
    print(error, file=sys.stderr)
    raise SystemExit(int(exit_code_of(error)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("new", [True, False], ids=["new", "replaced"])
def test_of_processes_that_race_one_wins_and_the_others_are_told(
    store: ObjectStore, name: str, harmed: Harm, new: bool
) -> None:
    """While some answers get lost, and the server is busy."""
    version = "" if new else store.put_if(name, b"before", version=None)
    harmed(*[{"do": "drop-after"}, BUSY] * 3, harms=writes)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.root, name, str(number), version],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    with ThreadPoolExecutor(len(racers)) as pool:
        told = list(pool.map(lambda racer: racer.communicate("go\n", timeout=120)[1], racers))
    winners = [number for number, racer in enumerate(racers) if racer.returncode == 0]
    assert len(winners) == 1, told
    assert store.get(name) == str(winners[0]).encode()
    assert {racer.returncode for racer in racers} == {0, TryAgain.exit_code}
    assert all("somebody else wrote first" in text for number, text in enumerate(told) if number not in winners)


@pytest.mark.slow
def test_a_full_server_asks_to_try_again_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_environment: Server
) -> None:
    from servers import create_bucket

    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        with s3_server(folder) as server:
            create_bucket(server.url, "store")
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
            here = open_store("s3://store")
            data = os.urandom(8 << 20)
            kept: list[Any] = []

            def fill() -> None:
                for number in range(20):
                    path = tmp_path / f"{number}"
                    path.write_bytes(data)
                    kept.append(save_file(here, f"file-{number}", path))

            with pytest.raises(TryAgain) as caught:
                fill()
            on_one_line(caught.value)
            assert len(kept) > 2
            for artifact in kept:
                assert fetch_artifact(artifact, tmp_path / "cache").read_bytes() == data
            assert sorted(here.keys()) == sorted(artifact.uri.rpartition("/")[2] for artifact in kept)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_whoever_may_not_list_uploads_still_writes(
    store: ObjectStore, name: str, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, S3Store)

    def refuse(operation: str) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, operation)

    with monkeypatch.context() as forbidden:
        forbidden.setattr(store._client, "get_paginator", refuse)
        store.put_file(name, large)
    assert store.get(name) == large.read_bytes()
