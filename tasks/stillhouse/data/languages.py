"""In which language a text is written (py3langid; Lui & Baldwin 2012)."""

from functools import cache
from typing import Any

READ_CHARACTERS = 2_000
"""The beginning of a text suffices, and time grows with its length."""


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of the language in which ``text`` is most probably written."""
    code: str = _identifier().classify(text[:READ_CHARACTERS])[0]
    return code


def known_languages() -> frozenset[str]:
    """Return the codes that `language_of` may return."""
    return frozenset(_identifier().labels)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reads 4 MB

    return LanguageIdentifier.from_model_file(MODEL_FILE)
