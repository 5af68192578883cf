"""What the report says besides figures of quality: where the sets come from, and what each task took."""

from stillhouse.evaluation import TableFacts, TaskCost
from stillhouse.stages.context import StageContext
from stillhouse.stages.evidence import WRITTEN, Reports
from stillhouse.stages.records import read_records, read_result


def table_facts(context: StageContext, reports: Reports) -> list[TableFacts]:
    """Return the sets of the run, each with where it comes from."""
    recipe, inputs = context.recipe, context.request.inputs
    named = recipe.data.named_tables()
    facts = [
        TableFacts(
            name=name,
            num_rows=found.rows,
            sha256=inputs[f"data-{name}"].sha256,
            licence=named.get(name, recipe.data.train).licence,
            origin=named.get(name, recipe.data.train).origin,
        )
        for name, found in reports.validation.tables.items()
        if f"data-{name}" in inputs
    ]
    if reports.synthesis and "data-curated" in inputs:
        written = TableFacts(
            name=WRITTEN,
            num_rows=reports.synthesis.rows["train"],
            sha256=inputs["data-curated"].sha256,
            licence=recipe.teacher.licence,
            origin=f"written by {reports.synthesis.teacher}",
        )
        facts.append(written)
    return facts


def task_costs(context: StageContext) -> dict[str, TaskCost]:
    """Return what each task of this run took when its result was made, by task id."""
    tasks = read_records(context.store, context.request.run_id)
    results = {name: read_result(record.result) for name, record in tasks.items() if record.result}
    return {
        name: TaskCost(
            seconds=result.seconds,
            cpu_seconds=result.cpu_seconds,
            device_seconds=result.device_seconds,
            peak_memory_bytes=result.peak_memory_bytes,
            cost=result.cost,
        )
        for name, result in results.items()
    }
