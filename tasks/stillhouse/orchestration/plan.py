"""From a recipe to the tasks of its workflow. Knows nothing of Airflow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse.contract import DISTILLED
from stillhouse.recipe import Recipe, StageName

Origins = dict[str, tuple[str, str]]
"""Name of an input -> (task that makes it, name of the output there)."""


@dataclass(frozen=True, kw_only=True)
class PlannedTask:
    """One task: a stage, what sets it apart, and where its inputs come from."""

    task_id: str
    stage: StageName
    parameters: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Name of the input -> (task that makes it, name of the output there)."""
    after: tuple[str, ...] = ()
    """Tasks that must have ended before, although nothing of theirs is read."""

    @property
    def upstream(self) -> tuple[str, ...]:
        """Tasks that must have ended well before this one, in a stable order."""
        return tuple(dict.fromkeys([*(task for task, _ in self.inputs.values()), *self.after]))


def plan(recipe: Recipe) -> tuple[PlannedTask, ...]:
    """Return the tasks of the workflow, each after everything that it needs.

    No teacher is fetched or asked before its terms are known to permit it. A control arm is trained whatever the
    teacher says, so it waits for no more of the teacher than it learns from.
    """
    return (
        PlannedTask(task_id="permit", stage="permit"),
        PlannedTask(task_id="validate", stage="validate"),
        *_teacher(recipe),
        *_writing(recipe),
        *_students(recipe),
        *_compression(recipe),
        *_verdict(recipe),
    )


def _train() -> Origins:
    return {"train": ("validate", "train")}


def _weights(recipe: Recipe) -> Origins:
    return {"teacher": ("prepare-teacher", "model")} if recipe.teacher.source else {}


def _held_out(recipe: Recipe) -> Origins:
    return {name: ("validate", name) for name in ("validation", *(name for name, _ in recipe.data.suites().values()))}


def _teacher(recipe: Recipe) -> list[PlannedTask]:
    tasks = []
    if recipe.teacher.source:
        tasks.append(
            PlannedTask(task_id="prepare-teacher", stage="prepare-teacher", inputs=_train(), after=("permit",))
        )
    start = PlannedTask(task_id="initialise", stage="initialise", inputs=_train() | _weights(recipe))
    return [*tasks, start]


def _writing(recipe: Recipe) -> list[PlannedTask]:
    """Return the tasks in which the teacher writes, and in which its writings become a data set."""
    if recipe.synthesis is None:
        return []
    shards = [f"generate-{shard}" for shard in range(recipe.teacher.shards)]
    return [
        *(
            PlannedTask(
                task_id=task,
                stage="generate",
                parameters={"shard": shard, "shards": len(shards)},
                inputs=_train() | _weights(recipe),
                after=("permit",),
            )
            for shard, task in enumerate(shards)
        ),
        PlannedTask(
            task_id="curate",
            stage="curate",
            inputs={f"answers-{shard}": (task, "answers") for shard, task in enumerate(shards)}
            | {f"counts-{shard}": (task, "counts") for shard, task in enumerate(shards)}
            | _train()
            | _held_out(recipe)
            | _weights(recipe)
            # What a server says about its tokens is kept in those of the student.
            | ({"start": ("initialise", "model")} if recipe.imitates_distributions else {}),
        ),
    ]


def _students(recipe: Recipe) -> list[PlannedTask]:
    arms = [
        PlannedTask(
            task_id=f"distill-{arm}",
            stage="distill",
            parameters={"arm": arm},
            inputs=_lessons(recipe, arm) | {"start": ("initialise", "model")} | _signal(recipe, arm) | _watched(recipe),
        )
        for arm in recipe.arms
    ]
    return [*_scoring(recipe), *arms]


def _scoring(recipe: Recipe) -> list[PlannedTask]:
    if recipe.synthesis is not None:
        return []
    return [
        PlannedTask(
            task_id=f"teach-{shard}",
            stage="teach",
            parameters={
                "shard": shard,
                "shards": recipe.teacher.shards,
                "hidden": recipe.distillation.caches_hidden,
            },
            inputs=_train() | _weights(recipe),
        )
        for shard in range(recipe.teacher.shards)
    ]


def _lessons(recipe: Recipe, arm: str) -> Origins:
    """Return the set that an arm learns from."""
    if recipe.synthesis is None or arm == "sft":
        return _train()
    return {"train": ("curate", "train" if arm == "kd" else arm)}


def _signal(recipe: Recipe, arm: str) -> Origins:
    """Return what an arm learns of the teacher besides its words."""
    if arm != "kd" or not recipe.imitates_distributions:
        return {}
    if recipe.synthesis is not None:
        return {"cache-0": ("curate", "cache")}
    caches = {f"cache-{shard}": (f"teach-{shard}", "cache") for shard in range(recipe.teacher.shards)}
    return _weights(recipe) | caches


def _watched(recipe: Recipe) -> Origins:
    return {"validation": ("validate", "validation")} if recipe.training.validation_points else {}


def _compression(recipe: Recipe) -> list[PlannedTask]:
    """Return the tasks of the chain. Each may start from any model before it: which one is good is known only then."""
    tasks: list[PlannedTask] = []
    for step in recipe.compression:
        tasks.append(
            PlannedTask(
                task_id=f"compress-{step.name}",
                stage="compress",
                parameters={"step": step.name},
                inputs=_lessons(recipe, DISTILLED)
                | (_signal(recipe, DISTILLED) if step.distils else {})
                | {"validation": ("validate", "validation"), DISTILLED: (f"distill-{DISTILLED}", "model")}
                | _compressed(*(task.parameters["step"] for task in tasks)),
            )
        )
    return tasks


def _compressed(*steps: str) -> Origins:
    """Return the models that steps made, and what they say about them."""
    return {f"model-{name}": (f"compress-{name}", "model") for name in steps} | {
        f"step-{name}": (f"compress-{name}", "step") for name in steps
    }


def _verdict(recipe: Recipe) -> list[PlannedTask]:
    calibration = {"validation": ("validate", "validation")} if recipe.evaluation.temperature_scaling else {}
    test_sets = {name: ("validate", name) for name, _ in recipe.data.suites().values()}
    models = {"start": ("initialise", "model")} | {arm: (f"distill-{arm}", "model") for arm in recipe.arms}
    compressed = _compressed(*(step.name for step in recipe.compression))
    histories = {f"history-{arm}": (f"distill-{arm}", "history") for arm in recipe.arms}
    written = (
        {"synthesis": ("curate", "report"), "curated": ("curate", "validation"), "data-curated": ("curate", "train")}
        if recipe.synthesis
        else {}
    )
    lineage = {"terms": ("permit", "terms")}
    return [
        PlannedTask(
            task_id="evaluate",
            stage="evaluate",
            inputs=test_sets | calibration | _weights(recipe) | models | compressed,
        ),
        PlannedTask(
            task_id="decide",
            stage="decide",
            inputs={
                "validation": ("validate", "report"),
                "docs": ("validate", "docs"),
                "summary": ("evaluate", "summary"),
                "records": ("evaluate", "records"),
                "timings": ("evaluate", "timings"),
                DISTILLED: (f"distill-{DISTILLED}", "model"),
            }
            | compressed
            | {f"data-{name}": origin for name, origin in (_train() | _held_out(recipe)).items()}
            | written
            | histories
            | lineage,
        ),
        PlannedTask(
            task_id="promote",
            stage="promote",
            inputs={
                "decision": ("decide", "decision"),
                "model-card": ("decide", "model-card"),
                DISTILLED: (f"distill-{DISTILLED}", "model"),
            }
            | compressed
            | _lessons(recipe, DISTILLED)
            | _weights(recipe)
            | lineage,
        ),
        PlannedTask(task_id="announce", stage="announce", after=("promote",)),
    ]
