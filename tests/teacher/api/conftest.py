from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from teacher_server import GREEDY, MODEL, Teacher, teacher_server

from stillhouse.recipe import ApiConfig
from stillhouse.store import FileStore
from stillhouse.teacher.api import ApiWriter, Spending, batch, retrying
from stillhouse.teacher.writer import Decoding


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with teacher_server() as running:
        yield running


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(batch, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def writer_of(store: FileStore) -> Callable[..., ApiWriter]:
    """Return what makes a writer for an address; settings are those of the recipe's section."""

    def make(url: str, *, decoding: Decoding = GREEDY, run: str = "run", **settings: Any) -> ApiWriter:
        values = {"base_url": url, "model": MODEL, "concurrency": 2, "timeout_seconds": 30.0, "attempts": 4}
        config = ApiConfig.model_validate(values | settings)
        spending = Spending(store, run_id=run, ceiling=config.ceiling, prices=config.prices)
        return ApiWriter(config, decoding, spending=spending, store=store)

    return make
