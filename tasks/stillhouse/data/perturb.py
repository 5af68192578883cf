"""Copies of the test set whose texts are changed in ways that must not change their labels."""

import hashlib
import re
from collections.abc import Callable
from random import Random

import pandas as pd

from stillhouse.recipe import Perturbation

LONG_WORD = re.compile(r"[^\W\d_]{4,}")
"""Words that typos hit. The first and the last letter stay, which keeps them readable (Belinkov & Bisk 2018)."""
WORD = re.compile(r"\S+")


def perturb(frame: pd.DataFrame, config: Perturbation) -> pd.DataFrame:
    """Change the texts of a set.

    What becomes of a text depends on the seed and on the text alone: neither rows that are added nor their order change
    it, and equal texts stay equal. A text that offers nothing to change stays as it is, such as one of a single word
    under ``length``; an empty one stays empty, so that the suites find it.

    Args:
        frame: A set (N); see `stillhouse.data.tables.read_table`.
        config: What to do, and how much of it.

    Returns:
        The same rows with the same ids and labels, so that they can be compared pair by pair.
    """
    change = CHANGES[config.kind]
    texts = [change(text, config, _random(text, config)) if text.strip() else text for text in frame["text"]]
    return frame.assign(text=pd.Series(texts, index=frame.index, dtype=object))


def _typos(text: str, config: Perturbation, random: Random) -> str:
    """Hit the share ``strength`` of all words, at least one, as far as there are long ones."""
    words = list(LONG_WORD.finditer(text))
    count = max(1, round(config.strength * len(WORD.findall(text))))
    # Back to front, so that the places of the words that are left stay true.
    hit = sorted(sorted(words, key=lambda word: random.random())[:count], key=re.Match.start, reverse=True)
    for word in hit:
        text = text[: word.start()] + _misspelt(word[0], random) + text[word.end() :]
    return text


def _misspelt(word: str, random: Random) -> str:
    """Swap two neighbouring letters inside a word, drop one or double one; the result differs."""
    place = 1 + int(random.random() * (len(word) - 3))
    before, first, second, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    swapped, dropped, doubled = second + first, second, first + first + second
    changed = (swapped, dropped, doubled)[int(random.random() * 3)]
    return before + (changed if changed != first + second else doubled) + after


def _case(text: str, config: Perturbation, random: Random) -> str:
    return text.upper() if random.random() < config.strength else text.lower()


def _length(text: str, config: Perturbation, random: Random) -> str:
    words = list(WORD.finditer(text))
    cut = max(1, round(config.strength * len(words)))
    return text[: words[max(1, len(words) - cut) - 1].end()]


def _template(text: str, config: Perturbation, random: Random) -> str:
    template = config.templates[int(random.random() * len(config.templates))]
    return template.replace("{text}", text)  # no `format`, since a frame may hold braces of its own


CHANGES: dict[str, Callable[[str, Perturbation, Random], str]] = {
    "typos": _typos,
    "case": _case,
    "length": _length,
    "template": _template,
}


def _random(text: str, config: Perturbation) -> Random:
    """Return the random numbers of one text. Only `Random.random` promises the same ones in every version of Python."""
    return Random(int.from_bytes(hashlib.sha256(f"{config.seed}\n{config.kind}\n{text}".encode()).digest()))
