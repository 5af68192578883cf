"""Stage ``curate``: what the teacher wrote becomes a data set, as clean and as checked as one that people collected.

Outputs: ``train`` and, if it is among the controls, ``unfiltered`` (Parquet), ``report`` (SynthesisReport),
``validation`` (ValidationReport), ``docs`` (Data Docs), ``card`` (Markdown).
"""

import pandas as pd

from stillhouse.contract import AnswerCounts, pretty_json
from stillhouse.data import Tables, ValidationReport, freeze, load_frozen, reject_if_critical
from stillhouse.data.docs import write_data_docs
from stillhouse.data.prepare import read_reference
from stillhouse.data.suites import validate
from stillhouse.data.synthetic.card import write_card
from stillhouse.data.synthetic.curate import Curated, curate, reject_if_beyond_limits
from stillhouse.data.synthetic.embedding import TeacherEmbedding
from stillhouse.data.synthetic.quality import Embed, word_counts
from stillhouse.models import configure_torch
from stillhouse.models.answers import read_answers
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.store import fetch_source

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
    curated = curate(
        recipe,
        read_answers([path for _, path in context.inputs(r"answers-\d+")]),
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
    report = _validate(context, curated, held_out) if len(curated.train) else None
    reject_if_beyond_limits(curated, recipe.synthesis.limits)
    if report is not None:
        reject_if_critical(report)
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
        context.input("teacher"), batch_size=recipe.teacher.batch_size, max_tokens=recipe.training.max_tokens
    )


def _validate(context: StageContext, curated: Curated, held_out: dict[str, pd.DataFrame]) -> ValidationReport:
    data = context.recipe.data
    order = ["validation", "test", *sorted(held_out.keys() - {"validation", "test"})]
    tables = Tables(
        frames={"train": curated.train} | {name: held_out[name] for name in order if name in held_out},
        dropped={"train": curated.dropped},
        reference=read_reference(data, fetch_source),
    )
    report = validate(tables, data)
    docs = context.workspace / "docs"
    write_data_docs(report, docs)
    context.save_bytes("validation", pretty_json(report), ".json")
    context.save_tree("docs", docs)
    return report


def _outcome(curated: Curated, report: ValidationReport | None) -> StageOutcome:
    facts = curated.report
    metrics = {f"rows.{name}": float(count) for name, count in facts.rows.items()}
    metrics |= {f"tokens.{name}": float(count) for name, count in facts.tokens.items()}
    metrics |= {f"removed.{count.name}": float(count.removed) for count in facts.filters}
    metrics |= {f"share.{name}": share for name, share in curated.shares.items()}
    metrics |= {f"self_bleu.{name}": found.self_bleu for name, found in facts.diversity.items()}
    if facts.audit is not None:
        metrics |= {"accuracy": facts.audit.accuracy.value, "wrong_steps": float(facts.audit.wrong_steps)}
    answers = facts.filters[0].seen
    warnings = len(report.warnings) if report else 0
    return StageOutcome(
        summary=f"{facts.kept:,} of {answers:,} answers kept" + (f", with {warnings} warnings" if warnings else ""),
        metrics=metrics,
    )
