"""Stage ``distill``: train one arm. ``kd`` learns from labels and teacher, ``sft`` from the labels alone.

Outputs: ``model`` (safetensors, tokenizer, config), ``history`` (JSON).
"""

from typing import Any

from stillhouse.contract import pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.losses import build_loss
from stillhouse.models import configure_torch, load_model, load_tokenizer, save_model, tokenizer_sha256
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.teacher import CacheIdentity, TeacherCache, check_canary
from stillhouse.training import TrainingJob, fit


def run(context: StageContext) -> StageOutcome:
    """Train the student of one arm: the same start, data, order and steps for every arm.

    Raises:
        DataRejected: The teacher cache is damaged or belongs to something else, its canary fails, or the loss became
            NaN or infinite.
    """
    recipe, arm = context.recipe, context.request.parameters["arm"]
    configure_torch(threads=context.cpus, seed=recipe.training.seed)
    folder = context.input("start")
    student, tokenizer = load_model(folder, task=recipe.task, labels=recipe.data.labels), load_tokenizer(folder)
    rows = load_frozen(context.input("train"))
    teacher = load_model(context.input("teacher"), task=recipe.task, labels=recipe.data.labels) if arm == "kd" else None
    shapes = {"student": model_shape(student), "teacher": model_shape(teacher)} if teacher else {}
    trained = fit(
        TrainingJob(
            model=student,
            tokenizer=tokenizer,
            rows=rows,
            task=recipe.task,
            config=recipe.training,
            loss=build_loss(recipe.distillation, arm, **shapes),
            cache=_teacher_cache(context, rows, tokenizer, teacher) if teacher else None,
            teacher=teacher if recipe.distillation.needs_teacher_beside else None,
            workspace=context.workspace,
            on_progress=context.report_progress,
            on_point=context.report_point,
        )
    )
    target = context.workspace / "model"
    save_model(trained.model, tokenizer, target)
    context.save_tree("model", target)
    context.save_bytes("history", pretty_json(trained.history), ".json")
    last = trained.history.points[-1]
    terms = ", ".join(f"{name} {value:.3f}" for name, value in last.terms.items())
    return StageOutcome(
        summary=f"{trained.history.total_steps} steps, {trained.samples_per_second:.0f} samples/s; at the end {terms}",
        metrics={"samples_per_second": trained.samples_per_second, "loss": last.loss, **last.terms},
    )


def _teacher_cache(context: StageContext, rows: Any, tokenizer: Any) -> TeacherCache:
    """Open the teacher's scores, after scoring a few random rows again to see that they still are the teacher's."""
    recipe = context.recipe
    folder = context.input("teacher")
    teacher_tokenizer = load_tokenizer(folder)
    cache = TeacherCache.open(
        [path for _, path in context.inputs(r"cache-\d+")],
        expected=CacheIdentity(
            teacher_sha256=context.request.inputs["teacher"].sha256,
            tokenizer_sha256=tokenizer_sha256(tokenizer),
            data_sha256=context.request.inputs["train"].sha256,
            max_tokens=recipe.training.max_tokens,
            labels=recipe.data.labels,
            hidden=recipe.distillation.hidden_weight > 0,
        ),
    )
    teacher = load_model(folder, task=recipe.task, labels=recipe.data.labels)
    check_canary(cache, teacher, teacher_tokenizer, rows, seed=recipe.training.seed)
    return cache
