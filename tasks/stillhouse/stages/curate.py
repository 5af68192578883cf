"""Stage ``curate``: what the teacher wrote becomes a data set, as clean and as checked as one that people collected.

Outputs: ``train`` and, if it is among the controls, ``unfiltered`` (Parquet), ``report`` (SynthesisReport),
``validation`` (ValidationReport), ``docs`` (Data Docs), ``card`` (Markdown); where the student
imitates more than words, ``cache``.
"""

from collections.abc import Sequence

from stillhouse.contract import AnswerCounts, pretty_json
from stillhouse.data import ValidationReport, freeze, load_frozen, reject_if_critical
from stillhouse.data.docs import write_data_docs
from stillhouse.data.synthetic.card import write_card
from stillhouse.data.synthetic.checking import validate_written
from stillhouse.data.synthetic.curate import Curated, curate, reject_if_beyond_limits
from stillhouse.data.synthetic.embedding import TeacherEmbedding
from stillhouse.data.synthetic.quality import Embed, word_counts
from stillhouse.data.synthetic.rows import choices_by_row
from stillhouse.models import configure_torch, documents_of, load_model, load_tokenizer, vocabulary_size
from stillhouse.models.answers import Answer, read_answers
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.store import fetch_source
from stillhouse.teacher import server_cache_identity
from stillhouse.teacher.api.targets import write_server_cache

HELD_OUT = r"validation|test|ood-.*"


def run(context: StageContext) -> StageOutcome:
    """Filter the answers, check what is left as `stillhouse.stages.validate` checks collected data, and freeze it.

    Raises:
        DataRejected: A share is beyond the recipe's limits, too little is left, or a critical check failed. The
            report, the card and the Data Docs are stored all the same.
        NotPermitted: Generated code would have to be run.
    """
    recipe = context.recipe
    assert recipe.synthesis is not None
    configure_torch(threads=context.cpus, seed=0)
    held_out = {name: load_frozen(path).to_pandas() for name, path in context.inputs(HELD_OUT)}
    answers = read_answers([path for _, path in context.inputs(r"answers-\d+")])
    curated = curate(
        recipe,
        answers,
        _counts(context),
        train=load_frozen(context.input("train")).to_pandas(),
        held_out=held_out,
        embed=_embed(context),
    )
    context.save_bytes("report", pretty_json(curated.report), ".json")
    sets = {"train": curated.train, "unfiltered": curated.unfiltered}
    for name, frame in sets.items():
        if frame is not None and len(frame):
            path = context.workspace / f"{name}.parquet"
            freeze(frame, path)
            context.save_file(name, path)
    digests = {name: artifact.sha256 for name, artifact in {**context.request.inputs, **context.outputs}.items()}
    context.save_bytes("card", write_card(recipe, curated.report, digests).encode(), ".md")
    report = None
    if len(curated.train):
        report = validate_written(curated, held_out, recipe.data, fetch_source)
        write_data_docs(report, context.workspace / "docs")
        context.save_bytes("validation", pretty_json(report), ".json")
        context.save_tree("docs", context.workspace / "docs")
    reject_if_beyond_limits(curated, recipe.synthesis.limits)
    if report is not None:
        reject_if_critical(report)
    if recipe.imitates_distributions:
        _write_cache(context, answers)
    return _outcome(curated, report)


def _counts(context: StageContext) -> AnswerCounts:
    total = AnswerCounts()
    for _, path in context.inputs(r"counts-\d+"):
        total = total.plus(AnswerCounts.model_validate_json(path.read_bytes()))
    return total


def _embed(context: StageContext) -> Embed:
    """Return what the quality filter sees of a passage: the teacher's states, or without its weights its words."""
    if "teacher" not in context.request.inputs:
        return word_counts
    recipe = context.recipe
    return TeacherEmbedding(
        context.input("teacher"),
        batch_size=recipe.teacher.batch_size,
        max_tokens=recipe.training.max_tokens,
        precision=recipe.teacher.precision,
    )


def _write_cache(context: StageContext, answers: Sequence[Answer]) -> None:
    """Keep what the server said about the tokens of its answers, in the tokens of the student."""
    recipe, training, folder = context.recipe, context.recipe.training, context.input("start")
    tokenizer, rows = load_tokenizer(folder), load_frozen(context.workspace / "train.parquet")
    size = vocabulary_size(load_model(folder, task=recipe.task), tokenizer)
    data_sha256, target = context.outputs["train"].sha256, context.workspace / "cache"
    identity = server_cache_identity(recipe, tokenizer, data_sha256=data_sha256, vocabulary_size=size)
    lengths, share, seed = training.max_tokens, training.mask_share, training.seed
    documents = documents_of(recipe.task, tokenizer, rows, max_tokens=lengths, mask_share=share, seed=seed)
    choices = choices_by_row(answers, recipe.synthesis)
    write_server_cache(target, documents, choices, tokenizer, identity=identity)
    context.save_tree("cache", target)


def _outcome(curated: Curated, report: ValidationReport | None) -> StageOutcome:
    warnings = len(report.warnings) if report else 0
    return StageOutcome(
        summary=f"{curated.report.kept:,} of {curated.report.filters[0].seen:,} answers kept"
        + (f", with {warnings} warnings" if warnings else ""),
        metrics=curated.metrics,
    )
