"""The trigger form: Airflow ``Param`` objects made from the recipe's own models.

Names are dotted recipe fields, so that a run's parameters are overrides for `stillhouse.recipe.load_recipe`. Defaults
are the recipe file's values: a scheduled run, which sees only defaults, is the recipe as it is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow.sdk import Param

from stillhouse.orchestration.plan import plan
from stillhouse.recipe import Recipe, RecipeError, load_recipe
from stillhouse.teacher.terms import SHIPPED as SHIPPED_TERMS

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Teacher": (
        "teacher.source",
        "teacher.licence",
        "teacher.finetune.epochs",
        "teacher.finetune.learning_rate",
        "teacher.finetune.batch_size",
    ),
    "Synthesis": ("synthesis.samples", "synthesis.temperature", "synthesis.max_new_tokens"),
    "Student": ("student.layers",),
    "Distillation": ("distillation.alpha", "distillation.temperature", "distillation.divergence"),
    "Training": (
        "training.epochs",
        "training.batch_size",
        "training.learning_rate",
        "training.warmup_share",
        "training.weight_decay",
        "training.max_tokens",
        "training.seed",
    ),
    "Gate and promotion": ("gate.policy", "promotion.approval", "promotion.approval_hours"),
}
"""What may differ from run to run. Fields that shape the graph, such as the number of shards, stay in the file."""

_SCHEMA_WORDS = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "pattern")


def recipe_params(recipe: Recipe) -> dict[str, Param]:
    """Return the trigger form of ``recipe``, section by section.

    An optional field or section that the recipe leaves out, such as ``teacher.finetune``, is left out too.
    """
    schema = Recipe.model_json_schema()
    values = recipe.model_dump(mode="json")
    return {
        field: _param(schema, values, field, section)
        for section, fields in SECTIONS.items()
        for field in fields
        if _lookup(values, field) is not None
    }


def recipe_of_run(recipe_file: Path, params: Mapping[str, Any]) -> Recipe:
    """Return the recipe that one run follows: the file, with the run's parameters in place.

    Args:
        recipe_file: The recipe file of the DAG.
        params: The run's parameters by dotted field name.

    Raises:
        RecipeError: A parameter names no field, has a value that the recipe refuses, or would change the graph that
            the DAG was built with.
    """
    recipe = load_recipe(recipe_file, overrides=params)
    if _graph(recipe) != _graph(load_recipe(recipe_file)):
        raise RecipeError(f"{recipe_file}: a run's parameters can't change its tasks; change the recipe file")
    return recipe


def _graph(recipe: Recipe) -> list[tuple[str, tuple[str, ...]]]:
    return [(task.task_id, task.upstream) for task in plan(recipe)]


def _param(schema: dict[str, Any], values: dict[str, Any], field: str, section: str) -> Param:
    spec = _field_schema(schema, values, field)
    # An optional field is offered as what it is when it is given: leaving it out is for the recipe file.
    given = next((option for option in spec.get("anyOf", ()) if option.get("type") != "null"), spec)
    form = {word: given[word] for word in _SCHEMA_WORDS if word in given}
    if "const" in given or "oneOf" in given or "$ref" in given:
        form |= {"type": "object"}
    value = _lookup(values, field)
    if field == "gate.policy":
        form |= _policy_choices(Path(value))
    help_text = " ".join(str(spec.get("description", "")).replace("``", "").split())
    return Param(
        value,
        title=field.rpartition(".")[2].replace("_", " ").capitalize(),
        # Plain text: the form draws code over the line above it.
        description=f"{help_text} ({field})".strip(),
        section=section,
        **form,
    )


def _policy_choices(policy: Path) -> dict[str, Any]:
    """Offer the gate's policies that lie beside the recipe's own, and nothing else: a form must not open other files.

    The terms policy may lie there, too; it is the deployment's and not a run's to choose.
    """
    choices = sorted({policy, *(path for path in policy.parent.glob("*.yaml") if path.name != SHIPPED_TERMS.name)})
    return {
        "enum": [str(choice) for choice in choices],
        "values_display": {str(choice): choice.stem for choice in choices},
    }


def _field_schema(schema: dict[str, Any], values: Any, field: str) -> dict[str, Any]:
    """Return the JSON schema of a dotted field: references, optional parts and parts of several kinds resolved."""
    node = schema
    for name in field.split("."):
        while "properties" not in node:
            options = [node, *node.get("anyOf", ()), *node.get("allOf", ())]
            reference = next(
                _reference(option, values) for option in options if {"$ref", "discriminator"} & set(option)
            )
            node = schema["$defs"][reference.rpartition("/")[2]]
        node, values = node["properties"][name], values[name]
    return node


def _reference(option: dict[str, Any], values: Any) -> str:
    """Return the model that a part of a schema refers to; of several kinds, the one that the values are of."""
    if "$ref" in option:
        return str(option["$ref"])
    kinds = option["discriminator"]
    return str(kinds["mapping"][values[kinds["propertyName"]]])


def _lookup(values: Any, field: str) -> Any:
    for name in field.split("."):
        if values is None:
            return None
        values = values[name]
    return values
