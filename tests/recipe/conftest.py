from typing import Any

import pytest


@pytest.fixture
def document() -> dict[str, Any]:
    """The smallest recipe, as plain data."""
    table = {"source": {"kind": "path", "path": "data.csv"}, "format": "csv", "licence": "CC0-1.0", "origin": "a test"}
    return {
        "name": "small",
        "description": "The smallest recipe.",
        "task": "text-classification",
        "data": {"domain": "here", "labels": ["no", "yes"], "train": table},
        "teacher": {"source": {"kind": "path", "path": "teacher"}, "licence": "MIT"},
        "student": {"layers": 2},
        "gate": {"policy": "policy.yaml"},
        "promotion": {"model": "small"},
    }
