"""A result counts only once it is known to be whole."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stillhouse.contract import IntegrityError, ResultRef, StageResult, pretty_json, sha256_of
from stillhouse.stages.records import verify_result
from stillhouse.store import ObjectStore, open_store, save_bytes, save_tree

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path / 'store'}")


@pytest.fixture
def reference(store: ObjectStore, tmp_path: Path) -> ResultRef:
    """Point to a result with a file and a folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1234")
    outputs = {"report": save_bytes(store, "out/report.json", b"{}"), "model": save_tree(store, "out/model", folder)}
    result = StageResult(
        stage="initialise",
        key="4" * 64,
        outputs=outputs,
        summary="done",
        started_at=MOMENT,
        finished_at=MOMENT,
        seconds=0,
        cpu_seconds=0,
        peak_memory_bytes=0,
        code_version="5" * 64,
    )
    return stored(store, pretty_json(result))


def stored(store: ObjectStore, document: bytes) -> ResultRef:
    store.put("result.json", document)
    return ResultRef(uri=store.uri("result.json"), sha256=sha256_of(document))


def test_a_whole_result_is_returned(reference: ResultRef) -> None:
    assert set(verify_result(reference).outputs) == {"report", "model"}


@pytest.mark.parametrize(("place", "name"), [("out/report.json", "report"), ("out/model/weights", "model")])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"other")])
def test_a_spoiled_output_is_named(reference: ResultRef, tmp_path: Path, place: str, name: str, spoil: Any) -> None:
    file = tmp_path / "store" / place
    file.chmod(0o644)
    spoil(file)
    with pytest.raises(IntegrityError, match=f"output {name} of .* is missing or damaged"):
        verify_result(reference)


def test_a_result_that_is_gone_changed_or_none_at_all_is_refused(store: ObjectStore, reference: ResultRef) -> None:
    with pytest.raises(IntegrityError, match="differs"):
        verify_result(reference.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match="is gone"):
        verify_result(reference.model_copy(update={"uri": store.uri("nothing.json")}))
    with pytest.raises(IntegrityError, match="is not a stage result"):
        verify_result(stored(store, b'{"anything": "else"}'))
