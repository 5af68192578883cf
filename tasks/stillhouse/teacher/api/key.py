"""Where a server's key is found. A recipe names the place; the key itself is in no file, record or log of ours."""

import os
from pathlib import Path

from stillhouse.contract import ConfigurationError, NotPermitted


def read_key(reference: str | None) -> str | None:
    """Return the key that ``reference`` names, or None where there is no reference.

    Args:
        reference: ``env:NAME`` or ``file:/path``.

    Raises:
        ConfigurationError: The place is empty or missing, or what it holds can't be a key.
        NotPermitted: The file may not be read.
    """
    if reference is None:
        return None
    kind, _, place = reference.partition(":")
    key = (os.environ.get(place, "") if kind == "env" else _from_file(Path(place))).strip()
    if not key:
        what = "environment variable" if kind == "env" else "file"
        raise ConfigurationError(f"teacher.api.key: the {what} {place} is missing or empty; give this process the key")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(f"teacher.api.key: {reference} holds more than a key; leave one word in it")
    return key


def _from_file(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except PermissionError:
        raise NotPermitted(f"teacher.api.key: {path} may not be read; give this user access to it") from None
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"teacher.api.key: {path} can't be read as text; give a file with the key") from None
