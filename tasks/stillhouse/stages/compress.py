"""Stage ``compress``: one step of the compression chain, and the gate after it.

Outputs: ``model`` (the smaller model, kept or not), ``step`` (JSON, the gate's verdict); ``history`` (JSON) if the
model learned again.
"""

from stillhouse.compression import Held, Lessons, apply_step, judge_step
from stillhouse.contract import DISTILLED, pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.models import configure_torch, load_model, load_tokenizer
from stillhouse.recipe import CompressionStep
from stillhouse.stages.chain import model_input, read_chain
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.lessons import read_cache, read_teacher


def run(context: StageContext) -> StageOutcome:
    """Make the last good model smaller, and say whether the result is good enough to go on from.

    Raises:
        ConfigurationError: The step's goal can't be met, or the model's architecture has no support.
        DataRejected: The teacher cache is damaged or belongs to something else, the loss became NaN or infinite or
            exploded, or a model gives scores that are no numbers.
    """
    recipe = context.recipe
    configure_torch(threads=context.cpus, seed=recipe.training.seed)
    names = [step.name for step in recipe.compression]
    position = names.index(context.request.parameters["step"])
    step = recipe.compression[position]
    before = read_chain(context.request.inputs).last_good(*step.starts_from)
    folder, target = context.input(model_input(before)), context.workspace / "model"
    applied = apply_step(
        recipe,
        step,
        folder,
        target,
        lessons=_lessons(context, step),
        workspace=context.workspace,
        on_progress=context.report_progress,
        on_point=context.report_point,
    )
    report = judge_step(
        recipe,
        step,
        applied,
        {before: folder, step.name: target},
        position=position + 1,
        held=Held(rows=load_frozen(context.input("validation")), sha256=context.request.inputs["validation"].sha256),
        on_progress=context.report_progress,
    )
    context.save_tree("model", target)
    context.save_bytes("step", pretty_json(report), ".json")
    if applied.history:
        context.save_bytes("history", pretty_json(applied.history), ".json")
    return StageOutcome(
        summary=f"{'kept' if report.kept else 'dropped'}: {applied.did}; {report.reason}",
        metrics={
            "kept": float(report.kept),
            "drop": report.drop.value,
            "parameters": float(report.size.parameters),
            "bytes": float(report.size.num_bytes),
            "share_of_bytes": report.size.num_bytes / report.size_before.num_bytes,
        },
    )


def _lessons(context: StageContext, step: CompressionStep) -> Lessons:
    rows = load_frozen(context.input("train"))
    if not step.distils:
        return Lessons(rows=rows)
    teacher, tokenizer = read_teacher(context)
    if teacher is not None and tokenizer is not None:
        cache = read_cache(context, rows, teacher, tokenizer)
        return Lessons(rows=rows, teacher=teacher, teacher_tokenizer=tokenizer, cache=cache)
    # A server's answers are kept in the tokens of the student, which the distilled one has.
    distilled = context.input(model_input(DISTILLED))
    scorer = load_model(distilled, task=context.recipe.task, labels=context.recipe.data.labels)
    return Lessons(rows=rows, cache=read_cache(context, rows, scorer, load_tokenizer(distilled)))
