"""What every store promises, asked of both kinds."""

import os
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillhouse.contract import ConfigurationError, Conflict
from stillhouse.store import ObjectStore, locate, open_store

BAD_KEYS = ["", "/a", "a//b", "a/", "../a", "a/../b", "a/..", ".", "./a", "a\\b", "a\nb", " a", "a /b", "x" * 300]
LARGE = 20 << 20  # above the size from which S3 uploads go in parts


def test_what_was_put_is_read_back(store: ObjectStore) -> None:
    store.put("a/b.txt", b"one")
    store.put("a/b.txt", b"two")
    assert store.get("a/b.txt") == b"two"
    assert store.exists("a/b.txt")
    assert store.uri("a/b.txt") == f"{store.root}/a/b.txt"


def test_absent_objects_are_told_apart_from_empty_ones(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.exists("empty")
    assert not store.exists("absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        store.get("absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        store.get_versioned("absent")


def test_a_folder_of_keys_is_no_object(store: ObjectStore) -> None:
    store.put("folder/key", b"1")
    assert not store.exists("folder")
    with pytest.raises(FileNotFoundError):
        store.get("folder")


def test_keys_and_sizes_are_sorted_and_filtered_by_prefix(store: ObjectStore) -> None:
    for key in ("b/2", "a", "b/10", "bc", "b/d/e"):
        store.put(key, key.encode())
    assert store.keys() == sorted(["b/2", "a", "b/10", "bc", "b/d/e"])
    assert store.keys("b/") == ["b/10", "b/2", "b/d/e"]
    assert store.keys("b") == ["b/10", "b/2", "b/d/e", "bc"]
    assert store.keys("nothing/here") == []
    assert store.sizes("b/d/") == {"b/d/e": 5}


def test_deleting_is_idempotent(store: ObjectStore) -> None:
    store.put("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    assert store.keys() == []


def test_large_files_survive_the_round_trip(store: ObjectStore, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(LARGE))
    store.put_file("big/file", source)
    store.get_file("big/file", target)
    assert target.read_bytes() == source.read_bytes()
    assert store.sizes() == {"big/file": LARGE}


def test_a_failed_download_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(FileNotFoundError):
        store.get_file("absent", folder / "target")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("key", BAD_KEYS)
def test_keys_that_could_leave_the_root_are_refused(store: ObjectStore, key: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    for call in (
        lambda: store.put(key, b"1"),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.put_if(key, b"1", version=None),
        lambda: store.put_file(key, file),
        lambda: store.get_file(key, file),
        lambda: store.delete(key),
        lambda: store.uri(key),
    ):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["/", "../", "a//", "a/../", "..//"])
def test_prefixes_that_could_leave_the_root_are_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(ConfigurationError):
        store.keys(prefix)


def test_compare_and_swap_needs_the_current_version(store: ObjectStore) -> None:
    first = store.put_if("k", b"1", version=None)
    assert store.get_versioned("k") == (b"1", first)
    with pytest.raises(Conflict, match="somebody else wrote first"):
        store.put_if("k", b"other", version=None)
    second = store.put_if("k", b"2", version=first)
    with pytest.raises(Conflict):
        store.put_if("k", b"stale", version=first)
    assert store.get_versioned("k") == (b"2", second)


def test_compare_and_swap_fails_on_a_deleted_object(store: ObjectStore) -> None:
    version = store.put_if("k", b"1", version=None)
    store.delete("k")
    with pytest.raises(Conflict):
        store.put_if("k", b"2", version=version)
    assert not store.exists("k")


@pytest.mark.parametrize("exists", [False, True])
def test_of_sixteen_racers_one_wins(root: str, exists: bool) -> None:
    version = open_store(root).put_if("k", b"start", version=None) if exists else None
    barrier = threading.Barrier(16)

    def race(number: int) -> int | None:
        store = open_store(root)
        barrier.wait()
        try:
            store.put_if("k", b"racer %d" % number, version=version)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(race, range(16)) if number is not None]
    assert len(winners) == 1
    assert open_store(root).get("k") == b"racer %d" % winners[0]


def test_concurrent_increments_lose_nothing(root: str) -> None:
    open_store(root).put("counter", b"0")

    def increment(_: int) -> None:
        store = open_store(root)
        while True:
            data, version = store.get_versioned("counter")
            try:
                store.put_if("counter", b"%d" % (int(data) + 1), version=version)
            except Conflict:
                continue
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(24)))
    assert open_store(root).get("counter") == b"24"


WRITER = """
import sys
from pathlib import Path
from stillhouse.store import open_store
store = open_store(sys.argv[1])
print("ready", flush=True)
while True:
    store.put_file("object", Path(sys.argv[2]))
    print("wrote", flush=True)
"""


@pytest.mark.parametrize("delay", [0.002, 0.02, 0.05])
def test_a_killed_writer_leaves_a_whole_object(root: str, tmp_path: Path, delay: float) -> None:
    old, new = os.urandom(LARGE), os.urandom(LARGE)
    open_store(root).put("object", old)
    source = tmp_path / "new"
    source.write_bytes(new)
    command = [sys.executable, "-c", WRITER, root, str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == b"ready\n"
        threading.Event().wait(delay)  # the moment of death is what the test varies
        writer.kill()
    store = open_store(root)
    assert store.get("object") in (old, new)
    assert store.keys() == ["object"]
    store.put("object", b"afterwards")
    assert store.get("object") == b"afterwards"


def test_a_uri_leads_back_to_its_object(store: ObjectStore) -> None:
    store.put("a/b c", b"1")
    found, key = locate(store.uri("a/b c"))
    assert found.get(key) == b"1"


parts = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=20)
valid_keys = st.lists(parts.filter(lambda part: part not in (".", "..", ".stillhouse")), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=valid_keys, data=st.binary(max_size=100))
def test_any_decent_name_can_be_a_key(store: ObjectStore, parts: list[str], data: bytes) -> None:
    key = f"{uuid.uuid4().hex}/{'/'.join(parts)}"  # in a file store no key can be the folder of another
    store.put(key, data)
    assert store.get(key) == data
    assert store.keys(key) == [key]
    store.delete(key)
    assert not store.exists(key)


@settings(max_examples=200, deadline=None)
@given(key=st.text(max_size=30))
def test_no_text_whatever_leads_outside(key: str) -> None:
    folder = Path("/nonexistent/root")
    try:
        uri = open_store(str(folder)).uri(key)
    except ConfigurationError:
        return
    path = Path(os.path.normpath(uri.removeprefix("file://")))
    assert path.is_relative_to(folder)
    assert path != folder
