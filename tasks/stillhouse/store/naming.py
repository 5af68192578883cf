"""Which names objects may have: keys, prefixes and root URIs."""

from stillhouse.contract import ConfigurationError

RESERVED = ".stillhouse"
"""Top-level part that a file store keeps for its locks and unfinished files."""

FILE_SCHEME = "file://"
S3_SCHEME = "s3://"

_MAX_KEY_BYTES = 1024  # S3's own limit
_MAX_PART_BYTES = 255  # most file systems' limit of a name


def check_key(key: str) -> str:
    """Return ``key`` if it can name an object in every kind of store.

    Raises:
        ConfigurationError: It is empty, absolute, has an empty, ``.``, ``..`` or reserved part, a part with spaces at
            its ends, a control character or a backslash, or is too long.
    """
    fault = _fault(key)
    if fault:
        raise ConfigurationError(f"store key {_shown(key)} {fault}; use relative names joined by single slashes")
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if a valid key can start with it: empty, or a key that may end in a slash or amid a name.

    Raises:
        ConfigurationError: No valid key starts like this.
    """
    # A letter completes the last part, whether it is empty ("a/"), dots ("a/.") or the start of a name ("a/b").
    fault = _fault(prefix + "x") if prefix else None
    if fault:
        raise ConfigurationError(f"store prefix {_shown(prefix)} {fault}; use the start of a relative name")
    return prefix


def _fault(key: str) -> str | None:
    parts = key.split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        return "is not valid Unicode"
    rules = {
        "is empty": key == "",
        "is absolute": key.startswith("/"),
        "has an empty part": "" in parts,
        "has a part '.' or '..'": "." in parts or ".." in parts,
        f"uses the reserved name {RESERVED}": parts[0] == RESERVED,
        "has white space at the end of a part": any(part != part.strip() for part in parts),
        "has a backslash or a control character": any(c == "\\" or not c.isprintable() for c in key),
        "is too long": sum(sizes) + len(parts) - 1 > _MAX_KEY_BYTES or max(sizes) > _MAX_PART_BYTES,
    }
    return next((fault for fault, broken in rules.items() if broken), None)


def _shown(key: str) -> str:
    text = ascii(key)
    return text if len(text) <= 120 else text[:117] + "..."
