"""Stage ``initialise``: the student before distillation, made of the teacher's layers.

Outputs: ``model`` (safetensors, tokenizer, config).
"""

from stillhouse.models import configure_torch, load_model, load_tokenizer, save_model
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.student import initialise


def run(context: StageContext) -> StageOutcome:
    """Build the student that every arm starts from.

    Raises:
        ConfigurationError: The student is deeper than the teacher, or the layer map names a layer that it lacks.
    """
    config = context.recipe.student
    configure_torch(threads=context.cpus, seed=0)
    folder = context.input("teacher")
    teacher = load_model(folder, task=context.recipe.task, labels=context.recipe.data.labels)
    layers = layer_map(teacher.config.num_hidden_layers, config)
    student = student_from_teacher(teacher, config)
    target = context.workspace / "model"
    save_model(student, load_tokenizer(folder), target)
    context.save_tree("model", target)
    size, teacher_size = (sum(p.numel() for p in model.parameters()) for model in (student, teacher))
    return StageOutcome(
        summary=f"{size / 1e6:.1f}M parameters from teacher layers {', '.join(map(str, layers))}: "
        f"{size / teacher_size:.0%} of the teacher",
        metrics={"parameters": float(size), "share_of_teacher": size / teacher_size},
    )
