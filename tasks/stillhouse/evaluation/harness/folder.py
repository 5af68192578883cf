"""Task files of a recipe's folder, read as data.

The harness's own reader runs Python that such a file names, lets it read any file, and fetches metrics as code from a
model hub. None of that may follow from a recipe, so files are read here, and what they ask for is checked.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from stillhouse.contract import ConfigurationError

READERS = ("csv", "json", "parquet", "text")
"""Readers of local files, as ``dataset_path``."""
REFUSED = ("class", "custom_dataset", "use_prompt")
"""Fields that bring in code or files from elsewhere."""


class _Code:
    """Stands for a value that would have to be made by running code."""


class _Reader(yaml.SafeLoader):
    """Plain data; anything else becomes `_Code`."""


_Reader.add_constructor(None, lambda loader, node: _Code())


def read_tasks(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the settings of those of the named tasks that files of ``folder`` describe, paths of data files absolute.

    Args:
        folder: Its resolved path. All its ``*.yaml`` files are looked at, in folders below too.
        names: Of tasks.

    Raises:
        ConfigurationError: A file can't be read, two describe one task, or a task asks for code, for files outside the
            folder, or for a metric that the harness does not have.
    """
    wanted, found = set(names), dict[str, dict[str, Any]]()
    for path in sorted(folder.rglob("*.yaml")):
        settings = _merged(path, folder, ())
        name = settings.get("task")
        if not isinstance(name, str) or name not in wanted:
            continue
        if name in found:
            raise ConfigurationError(f"{path}: task {name} has a file already; rename one of them")
        _check(settings, path)
        found[name] = settings | {"dataset_kwargs": {"data_files": _data_files(settings, path, folder)}}
    return found


def _merged(path: Path, folder: Path, through: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file and what it includes, whose values it overrides."""
    if path in through:
        raise ConfigurationError(f"{path}: it includes itself; remove the include")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8"), _Reader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: can't be read as YAML ({type(error).__name__}); correct the file") from None
    if not isinstance(settings, dict):
        raise ConfigurationError(f"{path}: it holds no settings of a task; correct the file")
    merged: dict[str, Any] = {}
    for include in _listed(settings.pop("include", [])):
        merged |= _merged(_inside(include, path, folder), folder, (*through, path))
    return merged | settings


def _check(settings: Mapping[str, Any], path: Path) -> None:
    if _holds_code(settings):
        raise ConfigurationError(
            f"{path}: it asks for Python (!function), which a recipe's folder must not bring; take a task that ships "
            "with the harness, or say it in a template"
        )
    if refused := [field for field in REFUSED if field in settings]:
        raise ConfigurationError(f"{path}: {refused[0]} is not supported in a recipe's folder; remove it")
    if settings.get("dataset_path") not in READERS:
        raise ConfigurationError(
            f"{path}: dataset_path must be one of {', '.join(READERS)}, with data_files in the same folder"
        )
    from lm_eval.api import metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    for metric in settings.get("metric_list") or ():
        name = metric.get("metric") if isinstance(metric, dict) else None
        if not isinstance(name, str) or name not in metric_registry or metric.get("hf_evaluate"):
            raise ConfigurationError(f"{path}: metric_list has a metric that is not the harness's own; use acc, say")


def _holds_code(node: Any) -> bool:
    if isinstance(node, dict):
        return any(_holds_code(part) for pair in node.items() for part in pair)
    return any(map(_holds_code, node)) if isinstance(node, list) else isinstance(node, _Code)


def _data_files(settings: Mapping[str, Any], path: Path, folder: Path) -> dict[str, list[str]]:
    """Return the absolute paths of a task's data files by split."""
    options = settings.get("dataset_kwargs")
    files = options["data_files"] if isinstance(options, dict) and set(options) == {"data_files"} else None
    if not files:
        raise ConfigurationError(f"{path}: dataset_kwargs must have data_files, and nothing else")
    by_split = files if isinstance(files, dict) else {"train": files}  # as the library calls an only split
    return {str(split): [str(_inside(name, path, folder)) for name in _listed(n)] for split, n in by_split.items()}


def _inside(name: Any, path: Path, folder: Path) -> Path:
    """Return the path of a file named by the task file at ``path``, which must lie in ``folder``."""
    # The folder's digest covers what lies in it, links followed, and nothing else.
    target = Path(os.path.normpath(path.parent / str(name)))
    if not target.is_relative_to(folder) or not target.is_file():
        raise ConfigurationError(f"{path}: {name} is no file in the recipe's folder of tasks; copy it there")
    return target


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
