"""Stage ``prepare-teacher``: fetch the teacher, check it, and fine-tune it on the task if the recipe asks.

Outputs: ``model`` (safetensors, tokenizer, config), ``history`` (JSON) if it was fine-tuned.
"""

from stillhouse.contract import pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.training import prepare_teacher


def run(context: StageContext) -> StageOutcome:
    """Put the teacher that the rest of the run learns from into the store.

    Raises:
        ConfigurationError: The source is no safetensors or GGUF model, or a classifier with other labels.
        DataRejected: The loss became NaN or infinite or exploded.
    """
    recipe = context.recipe
    config = recipe.teacher.finetune
    configure_torch(threads=context.cpus, seed=config.seed if config else 0)
    target = context.workspace / "model"
    model, trained = prepare_teacher(
        recipe,
        load_frozen(context.input("train")),
        target,
        context.workspace,
        on_progress=context.report_progress,
        on_point=context.report_point,
    )
    context.save_tree("model", target)
    parameters = sum(p.numel() for p in model.parameters())
    if trained is None:
        return StageOutcome(
            summary=f"{parameters / 1e6:.1f}M parameters, used as it is", metrics={"parameters": float(parameters)}
        )
    context.save_bytes("history", pretty_json(trained.history), ".json")
    return StageOutcome(
        summary=f"{parameters / 1e6:.1f}M parameters fine-tuned in {trained.history.total_steps} steps, "
        f"{trained.samples_per_second:.0f} samples/s",
        metrics={
            "parameters": float(parameters),
            "samples_per_second": trained.samples_per_second,
            "loss": trained.history.points[-1].loss,
        },
    )
