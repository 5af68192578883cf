"""Stage ``distill``: train one arm. ``kd`` learns from texts, labels and teacher, its controls from texts and labels.

Outputs: ``model`` (safetensors, tokenizer, config), ``history`` (JSON).
"""

from stillhouse.contract import pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer, save_model
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.lessons import read_cache, read_teacher
from stillhouse.training import train_arm


def run(context: StageContext) -> StageOutcome:
    """Train the student of one arm: the same start and settings for every arm.

    Raises:
        DataRejected: The teacher cache is damaged or belongs to something else, its canary fails, or the loss became
            NaN or infinite or exploded.
        ConfigurationError: The teacher's signal can't be compared with the student's.
    """
    recipe, arm = context.recipe, context.request.parameters["arm"]
    configure_torch(threads=context.cpus, seed=recipe.training.seed)
    folder = context.input("start")
    student, tokenizer = load_model(folder, task=recipe.task, labels=recipe.data.labels), load_tokenizer(folder)
    rows = load_frozen(context.input("train"))
    watched = load_frozen(context.input("validation")) if recipe.training.validation_points else None
    teacher, teacher_tokenizer = read_teacher(context)
    trained = train_arm(
        recipe,
        arm,
        student=student,
        tokenizer=tokenizer,
        rows=rows,
        teacher=teacher,
        teacher_tokenizer=teacher_tokenizer,
        cache=read_cache(context, rows, teacher or student, teacher_tokenizer or tokenizer),
        validation=watched,
        workspace=context.workspace,
        on_progress=context.report_progress,
        on_point=context.report_point,
    )
    if not context.leads:
        return StageOutcome(summary="followed")
    target = context.workspace / "model"
    save_model(trained.model, tokenizer, target)
    context.save_tree("model", target)
    context.save_bytes("history", pretty_json(trained.history), ".json")
    last = trained.history.points[-1]
    terms = ", ".join(f"{name} {value:.3f}" for name, value in last.terms.items())
    validation = trained.history.validation
    return StageOutcome(
        summary=f"{trained.history.total_steps} steps, {trained.samples_per_second:.0f} samples/s; at the end {terms}",
        metrics={
            "samples_per_second": trained.samples_per_second,
            "tokens_per_second": trained.tokens_per_second,
            "loss": last.loss,
            **last.terms,
            **({"validation_loss": validation[-1].loss} if validation else {}),
        },
    )
