"""Stage ``evaluate``: every model of the run on the same frozen items.

Outputs: ``records`` (Parquet, one row per model and item), ``summary`` and ``timings`` (JSON), ``latencies`` (Parquet,
one row per model and item that was timed alone); with temperature scaling also ``validation-records``.
"""

import pyarrow.parquet as pq

from stillhouse.contract import METRICS, MODELS, EvaluationSummary, pretty_json
from stillhouse.data.frozen import load_frozen
from stillhouse.evaluation import SuiteInfo, Timed, build_benchmarks, measure, summarise
from stillhouse.models import configure_torch
from stillhouse.stages.chain import model_input, read_chain
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.interview import Interview

CALIBRATION = "validation"


def run(context: StageContext) -> StageOutcome:
    """Score all models, then say what follows from it.

    Raises:
        DataRejected: A model gives NaN or infinite scores, or models can't be compared.
        ConfigurationError: A benchmark is unfit, or a model for it.
    """
    recipe, config = context.recipe, context.recipe.evaluation
    configure_torch(threads=context.cpus, seed=config.seed)
    suites = recipe.data.suites()
    sets = {suite: load_frozen(context.input(name)) for suite, (name, _) in suites.items()}
    benchmarks = build_benchmarks(config.harness, context.workspace) if config.harness else []
    chain = read_chain(context.request.inputs)
    steps = tuple(step.name for step in chain.steps)
    named = {name: name for name in MODELS} | {step: model_input(step) for step in steps}
    models = {
        name: Timed.read(context.input(given), task=recipe.task, labels=recipe.data.labels)
        for name, given in named.items()
        if given in context.request.inputs
    }
    calibration = {CALIBRATION: load_frozen(context.input(CALIBRATION))} if config.temperature_scaling else {}
    items = sum(len(rows) for rows in (*sets.values(), *benchmarks, *calibration.values()))
    asked = Interview(context, models, context.progress("items", total=len(models) * items))
    records = asked.records("records", sets | {benchmark.suite: benchmark for benchmark in benchmarks})
    summary = summarise(
        records,
        config=config,
        suites=[
            SuiteInfo(name=suite, kind=kind, items_sha256=context.request.inputs[name].sha256)
            for suite, (name, kind) in suites.items()
        ]
        + [benchmark.info for benchmark in benchmarks],
        candidate=chain.candidate,
        steps=steps,
        labels=recipe.data.labels,
        has_teacher="teacher" in models,
        validation=asked.records("validation-records", calibration) if calibration else None,
    )
    context.save_bytes("summary", pretty_json(summary), ".json")
    home = sets[recipe.data.domain]
    texts = list(home["prompt" if "prompt" in home.column_names else "text"])
    longest = recipe.training.max_tokens
    timed = measure(models, texts, task=recipe.task, config=config, max_tokens=longest, labels=recipe.data.labels)
    context.save_bytes("timings", pretty_json(timed.timings), ".json")
    latencies = context.workspace / "latencies.parquet"
    pq.write_table(timed.latencies, latencies)
    context.save_file("latencies", latencies)
    return StageOutcome(summary=_headline(summary), metrics=_metrics(summary))


def _headline(summary: EvaluationSummary) -> str:
    suite = summary.suites[0]
    scores = ", ".join(f"{model} {score.value:.3f}" for model in suite.models if (score := suite.score(model)))
    return f"{METRICS[suite.metric].title} on {suite.name}: {scores}"


def _metrics(summary: EvaluationSummary) -> dict[str, float]:
    return {
        f"{suite.name}/{model}/{metric}": estimate.value
        for suite in summary.suites
        for model, scores in suite.models.items()
        for metric, estimate in scores.metrics.items()
    } | {f"{suite}/retention": estimate.value for suite, estimate in summary.retention.items()}
