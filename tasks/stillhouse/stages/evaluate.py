"""Stage ``evaluate``: every model of the run on the same frozen items.

Outputs: ``records`` (Parquet, one row per model and item), ``summary`` and ``timings`` (JSON).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from datasets import Dataset

from stillhouse.contract import DataRejected, EvaluationSummary, Progress, pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.evaluation import SuiteInfo, measure, read_records, score, summarise, write_records
from stillhouse.models import configure_torch, load_model, load_tokenizer, predict
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
    suites, sets = _suites(context)
    models = {
        name: (load_model(folder, task=recipe.task, labels=recipe.data.labels), load_tokenizer(folder))
        for name, folder in ((name, context.input(name)) for name in MODELS if name in context.request.inputs)
    }
    progress = context.progress("items", total=len(models) * sum(len(rows) for rows in sets.values()))
    done = 0
    records = []
    for name, (model, tokenizer) in models.items():
        for suite, rows in sets.items():
            with _named(name, suite):
                predictions = predict(
                    model,
                    tokenizer,
                    list(rows["text"]),
                    batch_size=config.batch_size,
                    max_tokens=recipe.training.max_tokens,
                    on_progress=partial(_report, progress, done),
                )
            done += len(rows)
            records.append(score(name, suite, rows, predictions))
    path = context.workspace / "records.parquet"
    write_records(records, path)
    context.save_file("records", path)
    summary = summarise(read_records(path), config=config, suites=suites)
    context.save_bytes("summary", pretty_json(summary), ".json")
    texts = list(sets[suites[0].name]["text"])
    timings = measure(models, texts, config=config, max_tokens=recipe.training.max_tokens)
    context.save_bytes("timings", pretty_json(timings), ".json")
    return StageOutcome(summary=_headline(summary), metrics=_metrics(summary))


@contextmanager
def _named(model: str, suite: str) -> Iterator[None]:
    """Say of scores that are refused whose they are."""
    try:
        yield
    except DataRejected as error:
        raise DataRejected(f"model {model} on suite {suite}: {error}") from error


def _report(progress: Callable[[float], None], before: int, part: Progress) -> None:
    progress(before + part.done)


def _suites(context: StageContext) -> tuple[list[SuiteInfo], dict[str, Dataset]]:
    """Return what is known of each suite, the in-domain one first, and its frozen rows by name."""
    data = context.recipe.data
    test = SuiteInfo(name=data.domain, kind="in-domain", items_sha256=context.request.inputs["test"].sha256)
    suites, sets = [test], {data.domain: load_frozen(context.input("test"))}
    for ood in data.ood:
        source = f"ood-{ood.name}"
        digest = context.request.inputs[source].sha256
        suites.append(SuiteInfo(name=ood.name, kind=ood.kind, items_sha256=digest))
        sets[ood.name] = load_frozen(context.input(source))
    return suites, sets


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
