"""Stage ``distill``: train one arm. ``kd`` learns from labels and teacher, ``sft`` from the labels alone.

Outputs: ``model`` (safetensors, tokenizer, config), ``history`` (JSON).
"""

from typing import Any

from stillhouse.contract import pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer, save_model
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.training import open_cache, train_arm


def run(context: StageContext) -> StageOutcome:
    """Train the student of one arm: the same start, data, order and steps for every arm.

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
    teacher = teacher_tokenizer = cache = None
    if arm == "kd":
        teacher, teacher_tokenizer, cache = _knowledge(context, rows)
    trained = train_arm(
        recipe,
        arm,
        student=student,
        tokenizer=tokenizer,
        rows=rows,
        teacher=teacher,
        teacher_tokenizer=teacher_tokenizer,
        cache=cache,
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
    return StageOutcome(
        summary=f"{trained.history.total_steps} steps, {trained.samples_per_second:.0f} samples/s; at the end {terms}",
        metrics={
            "samples_per_second": trained.samples_per_second,
            "tokens_per_second": trained.tokens_per_second,
            "loss": last.loss,
            **last.terms,
        },
    )


def _knowledge(context: StageContext, rows: Any) -> tuple[Any, Any, Any]:
    """Return the teacher, its tokenizer and its verified scores."""
    recipe, folder = context.recipe, context.input("teacher")
    teacher = load_model(folder, task=recipe.task, labels=recipe.data.labels)
    tokenizer = load_tokenizer(folder)
    cache = open_cache(
        recipe,
        [path for _, path in context.inputs(r"cache-\d+")],
        teacher,
        tokenizer,
        rows,
        teacher_sha256=context.request.inputs["teacher"].sha256,
        data_sha256=context.request.inputs["train"].sha256,
    )
    return teacher, tokenizer, cache
