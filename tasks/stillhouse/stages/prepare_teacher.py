"""Stage ``prepare-teacher``: fetch the teacher, check it, and fine-tune it on the task if the recipe asks.

Outputs: ``model`` (safetensors, tokenizer, config), ``history`` (JSON) if it was fine-tuned.
"""

from stillhouse.contract import pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.losses import build_loss
from stillhouse.models import check_model_folder, configure_torch, load_model, load_tokenizer, save_model
from stillhouse.recipe import TrainingConfig
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.store import fetch_source
from stillhouse.training import TrainingJob, TrainingOutcome, fit


def run(context: StageContext) -> StageOutcome:
    """Put the teacher that the rest of the run learns from into the store.

    Raises:
        ConfigurationError: The source is no safetensors model, or a classifier with other labels.
        DataRejected: The loss became NaN or infinite.
    """
    recipe = context.recipe
    config = recipe.teacher.finetune
    configure_torch(threads=context.cpus, seed=config.seed if config else 0)
    folder = fetch_source(recipe.teacher.source)
    check_model_folder(folder)
    model, tokenizer = load_model(folder, task=recipe.task, labels=recipe.data.labels), load_tokenizer(folder)
    trained = _finetune(context, config, model, tokenizer) if config else None
    target = context.workspace / "model"
    save_model(trained.model if trained else model, tokenizer, target)
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


def _finetune(context: StageContext, config: TrainingConfig, model: object, tokenizer: object) -> TrainingOutcome:
    return fit(
        TrainingJob(
            model=model,
            tokenizer=tokenizer,
            rows=load_frozen(context.input("train")),
            config=config,
            loss=build_loss(context.recipe.distillation, arm="sft"),
            workspace=context.workspace,
            on_progress=context.report_progress,
            on_point=context.report_point,
        )
    )
