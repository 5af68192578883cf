"""A recipe to start from."""

import json
import re
from importlib.resources import files

from pydantic import TypeAdapter, ValidationError

from stillhouse.recipe.base import Name
from stillhouse.recipe.loading import RecipeError

PLACEHOLDER = re.compile(r"@(NAME|DATA|TEACHER|POLICY)@")


def new_recipe(
    name: str,
    *,
    data: str = "data.csv",
    teacher: str = "teacher",
    policy: str = "../../mlflow/policies/quickstart.yaml",
) -> str:
    """Return the YAML text of a commented recipe for a table with the columns ``text`` and ``label``.

    Args:
        name: Of the recipe, its DAG and its registered model.
        data: Path of the CSV file, absolute or relative to the folder of the recipe file; so are the others.
        teacher: Path of the teacher's folder.
        policy: Path of the gate's policy.

    Raises:
        RecipeError: The name can't be one.
    """
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise RecipeError(
            "name: use lower-case words of letters and digits joined by dashes, up to 63 in all"
        ) from None
    text = files("stillhouse.recipe").joinpath("template.yaml").read_text(encoding="utf-8")
    # JSON strings are YAML strings, whatever a path contains.
    values = {"NAME": name, "DATA": json.dumps(data), "TEACHER": json.dumps(teacher), "POLICY": json.dumps(policy)}
    return PLACEHOLDER.sub(lambda match: values[match[1]], text)
