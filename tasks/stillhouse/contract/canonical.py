"""One way to turn data into bytes and bytes into a digest."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

CHUNK_BYTES = 1 << 20


def canonical_json(data: Any) -> bytes:
    """Encode plain data or a model so that equal data gives equal bytes: sorted keys, no spaces, UTF-8, no NaN.

    Raises:
        ValueError: The data holds NaN or infinity.
        TypeError: The data holds something that JSON can't.
    """
    plain = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def pretty_json(data: Any) -> bytes:
    """Encode plain data or a model for people to read: sorted keys, two spaces, a final newline.

    Raises:
        ValueError: The data holds NaN or infinity.
    """
    plain = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
    return (json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 digest of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 digest of the file at ``path`` in hexadecimal.

    Raises:
        OSError: The file can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
