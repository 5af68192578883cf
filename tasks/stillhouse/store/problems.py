"""Problems with verifiable answers, made on the spot by the library reasoning-gym."""

import json
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stillhouse.contract import ConfigurationError, canonical_json, sha256_of
from stillhouse.recipe import ReasoningSource
from stillhouse.store.downloads import cached_entry

LIBRARY = "reasoning-gym"
FILE = "problems.jsonl"


def fetch_problems(source: ReasoningSource, cache: Path) -> Path:
    """Return a file of JSON lines with ``id``, ``question``, ``answer`` and ``difficulty``, made once.

    ``difficulty`` is what the library says about the single problem, such as ``num_digits 1, num_terms 3``; a number
    where it says no more than that.
    """
    return cached_entry(cache / LIBRARY / fingerprint_problems(source), lambda folder: _make(source, folder)) / FILE


def fingerprint_problems(source: ReasoningSource) -> str:
    """Return a digest of what decides the problems: the parameters and the library's version."""
    try:
        release = version(LIBRARY)
    except PackageNotFoundError:
        raise ConfigurationError(f"{source.title}: install stillhouse[reasoning] to make problems") from None
    parameters = source.model_dump(mode="json") | {"seed": _spread(source.seed), "ids": source.seed}
    return sha256_of(canonical_json({"library": release, "source": parameters}))


def _make(source: ReasoningSource, folder: Path) -> None:
    with (folder / FILE).open("w", encoding="utf-8", newline="\n") as file:
        for number, problem in enumerate(_problems(source)):
            row = {
                "id": f"{source.task}-{source.seed}-{number}",
                "question": problem["question"].strip(),
                "answer": str(problem["answer"]).strip(),
                "difficulty": _difficulty(problem["metadata"]),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _problems(source: ReasoningSource) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a library below it, whenever it is first compiled
        from reasoning_gym.factory import DATASETS, create_dataset
    if source.task not in DATASETS:
        raise ConfigurationError(f"{LIBRARY} has no data set '{source.task}'; correct the source's task")
    try:
        return create_dataset(source.task, size=source.size, seed=_spread(source.seed), **source.options)
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{source.task}: {LIBRARY} refuses these options ({reason}); correct them") from None


def _spread(seed: int) -> int:
    """Return the library's seed. It makes problem i of seed s from s + i, so near seeds would share their problems."""
    return int(sha256_of(canonical_json(seed))[:7], 16)


def _difficulty(metadata: dict[str, Any]) -> str | int | float:
    """Return how hard one problem is. The library names the settings that make its problems harder, with their range
    over the data set, and mostly beside them what they are for this one."""
    settings = metadata.get("difficulty")
    if isinstance(settings, int | float):
        return settings
    found = {name: metadata.get(name, span) for name, span in (settings or {}).items()}
    return ", ".join(f"{name} {_plain(value)}" for name, value in sorted(found.items()))


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
