"""Stage ``initialise``: the student before distillation.

Outputs: ``model`` (safetensors, tokenizer, config).
"""

from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer, save_model
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.training import start_student


def run(context: StageContext) -> StageOutcome:
    """Build the student that every arm starts from.

    Raises:
        ConfigurationError: The layers don't fit, the architecture is refused, or a checkpoint of its own has another
            tokenizer or task.
    """
    recipe = context.recipe
    configure_torch(threads=context.cpus, seed=0)
    teacher = tokenizer = None
    if recipe.teacher.source:
        folder = context.input("teacher")
        teacher, tokenizer = load_model(folder, task=recipe.task, labels=recipe.data.labels), load_tokenizer(folder)
    start, own_tokenizer = start_student(
        recipe, teacher, tokenizer, load_frozen(context.input("train")), context.workspace
    )
    target = context.workspace / "model"
    save_model(start.model, own_tokenizer, target)
    context.save_tree("model", target)
    size = start.model.num_parameters()
    share = {"share_of_teacher": size / teacher.num_parameters()} if teacher else {}
    return StageOutcome(summary=start.summary, metrics={"parameters": float(size), **share})
