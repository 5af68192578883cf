"""Stage ``evaluate``: every model of the run on the same frozen items.

Outputs: ``records`` (Parquet, one row per model and item), ``summary`` and ``timings`` (JSON).
"""

import pyarrow as pa

from stillhouse.contract import EvaluationSummary, pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.evaluation import Suite, measure, score, summarise, write_records
from stillhouse.models import configure_torch, load_classifier, load_tokenizer, predict
from stillhouse.stages.context import StageContext, StageOutcome

MODELS = ("teacher", "kd", "sft", "start", "champion")
"""In the order of tables; ``sft`` and ``champion`` may be missing."""


def run(context: StageContext) -> StageOutcome:
    """Score all models, then say what follows from it.

    Raises:
        DataRejected: A model gives NaN or infinite scores.
    """
    recipe, config = context.recipe, context.recipe.evaluation
    configure_torch(threads=context.cpus, seed=config.seed)
    suites = _suites(context)
    models = {
        name: (load_classifier(folder, recipe.data.labels), load_tokenizer(folder))
        for name, folder in ((name, context.input(name)) for name in MODELS if name in context.request.inputs)
    }
    progress = context.progress("items", total=len(models) * sum(len(suite.rows) for suite in suites))
    done = 0
    tables = []
    for name, (model, tokenizer) in models.items():
        for suite in suites:
            predictions = predict(
                model,
                tokenizer,
                suite.rows["text"],
                batch_size=config.batch_size,
                max_tokens=recipe.training.max_tokens,
                on_progress=lambda items, before=done: progress(before + items),
            )
            done += len(suite.rows)
            tables.append(score(name, suite, predictions))
    records = pa.concat_tables(tables)
    path = context.workspace / "records.parquet"
    write_records(records, path)
    context.save_file("records", path)
    summary = summarise(records, suites=suites, config=config, candidate="kd")
    context.save_bytes("summary", pretty_json(summary), ".json")
    timings = measure(
        models, suites[0].rows["text"], config=config, max_tokens=recipe.training.max_tokens, threads=context.cpus
    )
    context.save_bytes("timings", pretty_json(timings), ".json")
    return StageOutcome(summary=_headline(summary), metrics=_metrics(summary))


def _suites(context: StageContext) -> list[Suite]:
    names = {"test": (context.recipe.data.domain, "in-domain")} | {
        f"ood-{ood.name}": (ood.name, ood.kind) for ood in context.recipe.data.ood
    }
    return [
        Suite(
            name=name,
            kind=kind,
            rows=load_frozen(context.input(source)),
            items_sha256=context.request.inputs[source].sha256,
        )
        for source, (name, kind) in names.items()
    ]


def _headline(summary: EvaluationSummary) -> str:
    suite = summary.suites[0]
    scores = ", ".join(f"{name} {scores.accuracy.value:.3f}" for name, scores in suite.models.items())
    return f"accuracy on {suite.name}: {scores}"


def _metrics(summary: EvaluationSummary) -> dict[str, float]:
    return {
        f"{suite.name}/{model}/{metric}": getattr(scores, metric).value
        for suite in summary.suites
        for model, scores in suite.models.items()
        for metric in ("accuracy", "macro_f1", "ece", "nll")
    } | {f"{suite}/retention": estimate.value for suite, estimate in summary.retention.items()}
