"""Great Expectations suites as code: what every set of a run must satisfy.

The suites see a profile of each set, never its text: ids, labels, lengths, digests. What they keep, and what Great
Expectations prints, can therefore not give away what people wrote.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd

from stillhouse.contract import StageBug
from stillhouse.data.docs import render_docs
from stillhouse.data.prepare import Tables, also_in, held_out_of
from stillhouse.data.report import LISTED_ROWS, CheckResult, TableFacts, ValidationReport
from stillhouse.data.tables import name_rows, text_key
from stillhouse.recipe import DataChecks, DataConfig

RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": ["id"],
    "exclude_unexpected_values": True,
    "partial_unexpected_count": 0,
}
"""Rows that fail are named by id, and their values left out."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One expectation, and how to speak about it. Messages may use ``{count}``, ``{rows}`` and ``{observed}``."""

    name: str
    expectation: Any
    failure: str


def validate(tables: Tables, config: DataConfig, *, docs: Path | None = None) -> ValidationReport:
    """Run the suite of every set.

    Args:
        tables: The sets of a run.
        config: Section ``data`` of the recipe.
        docs: Write Data Docs, one page that needs no other file, into this folder.

    Returns:
        The report, whether or not the data passed; see `ValidationReport.require_success`.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("stillhouse")
    results: dict[str, Any] = {}
    checks: list[CheckResult] = []
    for name in tables:
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        suite_checks = build_checks(name, tables, config)
        results[name] = batch.get_batch({"dataframe": profile(name, tables)}).validate(
            build_suite(name, suite_checks), result_format=RESULT_FORMAT
        )
        checks += _results(name, suite_checks, results[name])
    report = ValidationReport(
        success=all(check.success for check in checks if check.severity == "critical"),
        tables={name: _facts(frame, config.labels) for name, frame in tables.items()},
        dropped=tables.dropped,
        checks=tuple(checks),
    )
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        (docs / "index.html").write_text(render_docs(report, results), encoding="utf-8")
    return report


def profile(name: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Describe every row of the set ``name`` without its text.

    Returns:
        One row per row of the set: ``id``; ``label``; ``label_share``, the share of the set's rows with its label;
        ``characters`` of the stripped text, NaN without a text; ``text_digest``, equal for texts that differ only in
        case and white space, None without a text; and ``in_SET`` for every set that must not share a text with this one.
    """
    frame = tables[name]
    texts = frame["text"]
    columns = {
        "id": frame["id"],
        "label": frame["label"],
        "label_share": frame["label"].map(frame["label"].value_counts(normalize=True)),
        "characters": texts.map(lambda text: None if text is None else len(text.strip())).astype(float),
        "text_digest": texts.map(_text_digest).astype(object),
    }
    others = {f"in_{other}": also_in(frame, [tables[other]]) for other in held_out_of(name, tables)}
    return pd.DataFrame(columns | others)


def build_checks(name: str, names: Sequence[str] | Mapping[str, Any], config: DataConfig) -> list[Check]:
    """Return the checks of the set ``name``, given the names of all sets."""
    bounds = config.checks
    checks = [*_row_checks(bounds), *_text_checks(bounds), *_label_checks(config.labels)]
    if name == "train":
        checks += _balance_checks(config.labels, bounds)
    return checks + [_leak_check(other) for other in held_out_of(name, names)]


def build_suite(name: str, checks: Sequence[Check]) -> Any:
    """Return the `gx.ExpectationSuite` of a set; expectations carry their check's name as ``meta.check``."""
    return gx.ExpectationSuite(name=name, expectations=[check.expectation for check in checks])


def _row_checks(bounds: DataChecks) -> list[Check]:
    return [
        Check(
            name="rows",
            expectation=gxe.ExpectTableRowCountToBeBetween(
                min_value=bounds.min_rows,
                description=f"The set has at least {bounds.min_rows} rows.",
            ),
            failure=f"only {{observed}} rows of at least {bounds.min_rows}; add data or lower data.checks.min_rows",
        ),
        Check(
            name="ids",
            expectation=gxe.ExpectColumnValuesToBeUnique(column="id", description="No id occurs twice."),
            failure="{count} share their id with another row ({rows}); make ids unique or leave id_column out",
        ),
        Check(
            name="label-type",
            expectation=gxe.ExpectColumnValuesToBeOfType(
                column="label", type_="int64", description="Labels are indices into the label set."
            ),
            failure="labels are no int64; read the table with read_table",
        ),
    ]
