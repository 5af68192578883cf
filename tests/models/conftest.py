from pathlib import Path

import pytest
from tiny import write_teacher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier with labels ``negative`` and ``positive``, 64 positions."""
    return write_teacher(tmp_path / "model")
