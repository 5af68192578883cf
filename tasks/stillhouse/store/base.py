"""The one interface to objects, wherever they are kept."""

from pathlib import Path
from typing import Protocol


class ObjectStore(Protocol):
    """Objects below a root URI. Keys are relative, with ``/`` between parts, and never leave the root.

    Every write is atomic: a reader sees the old object, the new one or none, never a part. All methods raise
    ``TryAgain`` when the server is away or the disk is full, ``NotPermitted`` when credentials don't allow it, and
    ``ConfigurationError`` for a key that leaves the root.
    """

    root: str
    """URI without a final slash."""

    def uri(self, key: str) -> str:
        """Return the URI of ``key``."""
        ...

    def exists(self, key: str) -> bool:
        """Tell whether ``key`` holds an object."""
        ...

    def get(self, key: str) -> bytes:
        """Return the object's bytes.

        Raises:
            FileNotFoundError: There is none.
        """
        ...

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """Return the object's bytes and the version to name in `put_if`.

        Raises:
            FileNotFoundError: There is none.
        """
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object."""
        ...

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        """Compare and swap: write only if the object still has ``version``, or, for None, only if there is none.

        Returns:
            The new version.

        Raises:
            Conflict: Somebody else wrote first.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write or replace an object with the contents of a file, in parts if it is large."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Download an object to ``path``, whose folder exists; the file appears whole or not at all.

        Raises:
            FileNotFoundError: There is none.
        """
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size in bytes of every object whose key starts with ``prefix``, sorted by key."""
        ...

    def keys(self, prefix: str = "") -> list[str]:
        """List the keys that start with ``prefix``, sorted."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is no error."""
        ...
