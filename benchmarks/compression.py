"""What a chain of compression gave: a finished run's steps, and one of its models against the teacher.

python benchmarks/compression.py STORE RUN MODEL
"""

import argparse
import tempfile
from pathlib import Path

from stillhouse.contract import MODELS, EvaluationSummary, Timings
from stillhouse.evaluation import SuiteInfo, read_records, summarise
from stillhouse.evaluation.chain import chain_table
from stillhouse.evaluation.phrases import interval, percent, percent_interval, signed
from stillhouse.evaluation.tables import markdown
from stillhouse.orchestration.outcome import read_document
from stillhouse.orchestration.reading import find_run, read_run
from stillhouse.recipe import Recipe, load_recipe
from stillhouse.stages.chain import read_chain
from stillhouse.stages.records import read_result
from stillhouse.store import fetch_artifact, open_store

SHARE, FASTER, SMALLER = 0.97, 3.0, 4.0
"""The goals: of the teacher's score, of its speed at batch 1, of its bytes."""


def main() -> None:
    """Print the chain, if there is one, and the model beside the teacher and the others."""
    arguments = _arguments()
    store = open_store(arguments.store)
    evaluated = read_result(read_run(store, find_run(store, arguments.run))["evaluate"])
    summary = read_document(evaluated.outputs["summary"], EvaluationSummary)
    timings = read_document(evaluated.outputs["timings"], Timings)
    chain = read_chain(evaluated.inputs)
    if chain.steps:
        print("\n".join(markdown(chain_table(chain, summary, timings))), end="\n\n")
    recipe = load_recipe(arguments.recipe)
    with tempfile.TemporaryDirectory() as folder:
        records = read_records(fetch_artifact(evaluated.outputs["records"], Path(folder)))
    _against_teacher(_judged(records, summary, recipe, arguments.model), timings)


def _judged(records: object, summary: EvaluationSummary, recipe: Recipe, model: str) -> EvaluationSummary:
    """Return the summary of the same records in which ``model`` is the one that is compared, item by item."""
    return summarise(
        records,
        config=recipe.evaluation.model_copy(update={"temperature_scaling": False}),
        suites=[SuiteInfo(name=s.name, kind=s.kind, items_sha256=s.items_sha256) for s in summary.suites],
        candidate=model,
        steps=[name for name in summary.models if name not in MODELS],
        labels=recipe.data.labels,
    )


def _against_teacher(summary: EvaluationSummary, timings: Timings) -> None:
    home, model = summary.suites[0], summary.candidate
    own, teacher = timings.models[model], timings.models["teacher"]
    faster, smaller = teacher.latency_p50_ms / own.latency_p50_ms, teacher.num_bytes / own.num_bytes
    print(f"{model} on {home.name}, {home.num_items:,} items, {timings.threads} threads:")
    if kept := summary.retention.get(home.name):
        print(f"- {percent(kept)} {percent_interval(kept)} of the teacher's {home.metric} (goal {SHARE:.0%})")
    for baseline in summary.models:
        if found := summary.comparison(home.name, baseline):
            print(f"- minus {baseline}: {signed(found.difference)} {interval(found.difference)} {home.metric}")
    print(f"- {faster:.2f}x as fast as the teacher at batch 1 (goal {FASTER:g}x)")
    print(f"- {smaller:.2f}x smaller than the teacher (goal {SMALLER:g}x)")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="object store of the run")
    parser.add_argument("run", help="its id, the beginning of it, or latest")
    parser.add_argument("model", help="the model that is compared, such as onnx-int8")
    parser.add_argument("--recipe", type=Path, default=Path("dags/recipes/compressed.yaml"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
