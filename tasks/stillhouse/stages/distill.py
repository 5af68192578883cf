"""Stage ``distill``: train one arm. ``kd`` learns from texts, labels and teacher, its controls from texts and labels.

Outputs: ``model`` (safetensors, tokenizer, config), ``history`` (JSON).
"""

from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer, save_model
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.training import OpenedCache, open_cache, open_server_cache, train_arm


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
    teacher, teacher_tokenizer = _teacher(context)
    trained = train_arm(
        recipe,
        arm,
        student=student,
        tokenizer=tokenizer,
        rows=rows,
        teacher=teacher,
        teacher_tokenizer=teacher_tokenizer,
        cache=_cache(context, rows, teacher or student, teacher_tokenizer or tokenizer),
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


def _teacher(context: StageContext) -> tuple[PreTrainedModel, Tokenizer] | tuple[None, None]:
    """Return the teacher's weights and tokenizer where the arm learns from them."""
    if "teacher" not in context.request.inputs:
        return None, None
    recipe, folder = context.recipe, context.input("teacher")
    model = load_model(folder, task=recipe.task, labels=recipe.data.labels, precision=recipe.teacher.precision)
    return model, load_tokenizer(folder)


def _cache(context: StageContext, rows: Dataset, scorer: PreTrainedModel, tokenizer: Tokenizer) -> OpenedCache | None:
    """Return the teacher's verified scores where the arm learns from them."""
    folders = [path for _, path in context.inputs(r"cache-\d+")]
    if not folders:
        return None
    inputs = context.request.inputs
    data = inputs["train"].sha256
    if "teacher" not in inputs:
        return open_server_cache(context.recipe, folders, scorer, tokenizer, rows, data_sha256=data)
    return open_cache(
        context.recipe, folders, scorer, tokenizer, rows, teacher_sha256=inputs["teacher"].sha256, data_sha256=data
    )
