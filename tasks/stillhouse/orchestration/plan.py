"""From a recipe to the tasks of its workflow. Knows nothing of Airflow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse.recipe import Recipe, StageName


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

    The control arm is trained whatever the teacher says, so it does not wait for the teacher's scores.
    """
    train = {"train": ("validate", "train")}
    teacher = {"teacher": ("prepare-teacher", "model")}
    shards = [f"teach-{shard}" for shard in range(recipe.teacher.shards)]
    caches = {f"cache-{shard}": (task, "cache") for shard, task in enumerate(shards)}
    arms = recipe.distillation.arms
    measured = [name for name, _ in recipe.data.suites().values()]
    data = {f"data-{name}": ("validate", name) for name in ("train", "validation", *measured)}
    calibration = ["validation"] if recipe.evaluation.temperature_scaling else []
    test_sets = {name: ("validate", name) for name in (*measured, *calibration)}
    models = {"start": ("initialise", "model")} | {arm: (f"distill-{arm}", "model") for arm in arms}
    histories = {f"history-{arm}": (f"distill-{arm}", "history") for arm in arms}
    return (
        PlannedTask(task_id="validate", stage="validate"),
        PlannedTask(task_id="prepare-teacher", stage="prepare-teacher", inputs=train),
        PlannedTask(task_id="initialise", stage="initialise", inputs=train | teacher),
        *(
            PlannedTask(
                task_id=task,
                stage="teach",
                parameters={"shard": shard, "shards": len(shards), "hidden": recipe.distillation.caches_hidden},
                inputs=train | teacher,
            )
            for shard, task in enumerate(shards)
        ),
        *(
            PlannedTask(
                task_id=f"distill-{arm}",
                stage="distill",
                parameters={"arm": arm},
                inputs=train | {"start": ("initialise", "model")} | (teacher | caches if arm == "kd" else {}),
            )
            for arm in arms
        ),
        PlannedTask(task_id="evaluate", stage="evaluate", inputs=test_sets | teacher | models),
        PlannedTask(
            task_id="decide",
            stage="decide",
            inputs={
                "validation": ("validate", "report"),
                "docs": ("validate", "docs"),
                "summary": ("evaluate", "summary"),
                "records": ("evaluate", "records"),
                "timings": ("evaluate", "timings"),
                "model": ("distill-kd", "model"),
            }
            | data
            | histories,
        ),
        PlannedTask(
            task_id="promote",
            stage="promote",
            inputs={
                "decision": ("decide", "decision"),
                "model-card": ("decide", "model-card"),
                "model": ("distill-kd", "model"),
            }
            | train
            | teacher,
        ),
        PlannedTask(task_id="announce", stage="announce", after=("promote",)),
    )
