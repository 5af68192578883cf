from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillhouse.recipe import Table


@pytest.fixture
def make_table(tmp_path: Path) -> Callable[..., tuple[Table, Path]]:
    """Write bytes or text to a file and return a table that reads it, and its path."""

    def make(content: str | bytes, *, format_: str = "csv", name: str = "file", **fields: Any) -> tuple[Table, Path]:
        path = tmp_path / f"{name}.{format_}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return Table.model_validate(
            {"source": {"kind": "path", "path": str(path)}, "format": format_, "licence": "x", "origin": "x", **fields}
        ), path

    return make
