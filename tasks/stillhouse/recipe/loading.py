"""Reading recipes: YAML to `Recipe`, with overrides, and one-line explanations of what is wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stillhouse.recipe.recipe import Recipe


class RecipeError(ValueError):
    """The recipe can't be used. The message is one line that names the field and what is allowed."""


def load_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read the recipe file at ``path``.

    Args:
        path: A YAML file. Relative paths inside it are relative to its folder and come out absolute.
        overrides: Values that replace the file's, by dotted field name such as ``distillation.alpha``.

    Raises:
        RecipeError: The file is missing, is not YAML, or does not describe a valid recipe.
    """
    return parse_recipe(read_yaml(path), base=path.resolve().parent, overrides=overrides, name=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in the YAML file at ``path``.

    Raises:
        RecipeError: The file is missing, is not UTF-8 or YAML, or holds something else than a mapping.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise RecipeError(f"{path}: {where}not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: expected a mapping of sections, found {type(document).__name__}")
    return document


def parse_recipe(
    document: Mapping[str, Any],
    *,
    base: Path,
    overrides: Mapping[str, Any] | None = None,
    name: str = "recipe",
) -> Recipe:
    """Validate a recipe given as plain data; see `load_recipe`."""
    merged: Any = dict(document)
    for field, value in (overrides or {}).items():
        merged = _replace(merged, field.split("."), value)
    merged = _anchor_paths(merged, base)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"{name}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """Put a validation error on one line: every field and what it needs, without the value that was given."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'recipe'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors(include_url=False, include_input=False)
    )


def _anchor_paths(node: Any, base: Path) -> Any:
    """Make the path of every path source, and of the gate's policy, absolute."""
    if isinstance(node, list):
        return [_anchor_paths(item, base) for item in node]
    if not isinstance(node, dict):
        return node
    anchored = {key: _anchor_paths(value, base) for key, value in node.items()}
    for key, is_path in (("path", node.get("kind") == "path"), ("policy", True)):
        if is_path and isinstance(anchored.get(key), str):
            anchored[key] = str((base / anchored[key]).resolve())
    return anchored


def _replace(node: Any, field: list[str], value: Any) -> Any:
    if not field:
        return value
    branch = dict(node) if isinstance(node, dict) else {}
    return branch | {field[0]: _replace(branch.get(field[0]), field[1:], value)}
