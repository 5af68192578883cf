"""Stage ``validate``: read the tables, check them, freeze them.

Outputs: ``train``, ``validation``, ``test``, ``ood-NAME`` and ``perturbed-NAME`` (Parquet), ``report`` (JSON), ``docs``
(Data Docs).
"""

from stillhouse.contract import pretty_json
from stillhouse.data import freeze, load_tables
from stillhouse.data.docs import write_data_docs
from stillhouse.data.report import ValidationReport, reject_if_critical
from stillhouse.data.suites import validate
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.store import fetch_source


def run(context: StageContext) -> StageOutcome:
    """Check the recipe's data and freeze it.

    Raises:
        DataRejected: A table can't be read as the recipe says, or a critical check failed. The report and the Data
            Docs are stored all the same.
    """
    data = context.recipe.data
    tables = load_tables(data, fetch_source)
    docs = context.workspace / "docs"
    report = validate(tables, data)
    write_data_docs(report, docs)
    context.save_bytes("report", pretty_json(report), ".json")
    context.save_tree("docs", docs)
    reject_if_critical(report)
    for name, frame in tables.items():
        path = context.workspace / f"{name}.parquet"
        freeze(frame, path)
        context.save_file(name, path)
    rows = {name: len(frame) for name, frame in tables.items()}
    warnings = len(report.warnings)
    return StageOutcome(
        summary=f"{sum(rows.values()):,} rows in {len(rows)} tables pass"
        + (f", with {warnings} warnings" if warnings else ""),
        metrics={f"rows.{name}": float(count) for name, count in rows.items()} | _findings(report),
    )


def _findings(report: ValidationReport) -> dict[str, float]:
    near = [check for check in report.checks if check.name.startswith("near-")]
    return {
        "warnings": float(len(report.warnings)),
        "contaminated.removed": float(sum(lost.contaminated for lost in report.dropped.values())),
        "contaminated.left": float(sum(check.unexpected_count for check in near)),
    } | {f"coverage.{name}": figure.value for name, figure in report.coverage.items()}
