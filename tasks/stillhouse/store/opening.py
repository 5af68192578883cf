"""From a URI to a store."""

from pathlib import Path

from stillhouse.contract import ConfigurationError
from stillhouse.store.base import ObjectStore
from stillhouse.store.file import FileStore
from stillhouse.store.naming import FILE_SCHEME, S3_SCHEME


def open_store(root: str) -> ObjectStore:
    """Open the store at ``root``.

    Args:
        root: ``s3://bucket/prefix``, ``file:///absolute/folder`` (taken literally: ``%20`` is no space), or a path.

    Raises:
        ConfigurationError: The root has another form, or the S3 settings are wrong.
    """
    if root.startswith(S3_SCHEME):
        from stillhouse.store.s3 import S3Store  # boto3 takes half a second, and most runs have no bucket

        return S3Store(root)
    if "://" in root and not root.startswith(FILE_SCHEME):
        raise ConfigurationError(f"store {root}: expected s3://BUCKET/PREFIX, file:///FOLDER or a path")
    path = Path(root.removeprefix(FILE_SCHEME)).expanduser()
    if root.startswith(FILE_SCHEME) and not path.is_absolute():
        raise ConfigurationError(f"store {root}: expected file:/// and an absolute folder")
    return FileStore(path.resolve())


def locate(uri: str) -> tuple[ObjectStore, str]:
    """Return a store that holds the object or folder at ``uri``, and its key there.

    Raises:
        ConfigurationError: ``uri`` names no object.
    """
    scheme = S3_SCHEME if uri.startswith(S3_SCHEME) else FILE_SCHEME
    parent, _, name = uri.removeprefix(scheme).rstrip("/").rpartition("/")
    if not uri.startswith(scheme) or not parent or not name:
        raise ConfigurationError(f"artifact {uri}: expected s3://BUCKET/KEY or file:///FOLDER/KEY")
    return open_store(scheme + parent), name
