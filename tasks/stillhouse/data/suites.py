"""Validating the sets of a run with Great Expectations. Importing this takes seconds."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import great_expectations as gx
import numpy as np
import pandas as pd

from stillhouse.contract import StageBug
from stillhouse.data.checks import Check, build_checks, build_coverage_checks, build_suite
from stillhouse.data.contamination import near_duplicates
from stillhouse.data.coverage import measure_coverage
from stillhouse.data.integrity import judge_integrity
from stillhouse.data.prepare import Tables, held_out_of, shares_text
from stillhouse.data.report import (
    LISTED_ROWS,
    CheckResult,
    CoverageFigure,
    CoverageName,
    TableFacts,
    ValidationReport,
)
from stillhouse.data.tables import name_rows, row_keys
from stillhouse.recipe import DataConfig
from stillhouse.recipe.data import SLICE

RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": ["id"],
    "exclude_unexpected_values": True,
    "partial_unexpected_count": 0,
}
"""Rows that fail are named by id; their values stay out."""


def validate(tables: Tables, config: DataConfig) -> ValidationReport:
    """Run the suite of every set, and that of the training set's coverage if the recipe has a reference.

    Args:
        tables: The sets of a run.
        config: Section ``data`` of the recipe.

    Returns:
        The report, whether or not the data passed; see `reject_if_critical`.

    Raises:
        DataRejected: A set has too few texts to measure coverage.
        StageBug: An expectation could not be evaluated.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("stillhouse")
    results: list[CheckResult] = []
    for name in tables:
        results += _judge(source, name, profile(name, tables, config), build_checks(name, tables, config))
    coverage: dict[CoverageName, CoverageFigure] = {}
    if config.coverage and tables.reference is not None:
        coverage = measure_coverage(tables["train"], tables.reference, config.coverage)
        figures = pd.DataFrame({"id": ["train"]} | {name: [figure.value] for name, figure in coverage.items()})
        results += _judge(source, "train", figures, build_coverage_checks(config.coverage, coverage))
    return ValidationReport(
        success=all(result.success for result in results if result.severity == "critical"),
        tables={name: _facts(frame, config.labels) for name, frame in tables.items()},
        dropped=tables.dropped,
        checks=tuple(results),
        coverage=coverage,
        integrity=judge_integrity(config, results, tables.dropped, coverage),
    )


def suites_as_json(names: Collection[str], config: DataConfig) -> dict[str, Any]:
    """Return the suites of all sets, and that of coverage, as plain data: for people to review, and for a snapshot."""
    suites = {name: build_suite(name, build_checks(name, names, config)) for name in names}
    if config.coverage:
        checks = build_coverage_checks(config.coverage, get_args(CoverageName))
        suites["coverage"] = build_suite("coverage", checks)
    return {
        name: [
            {
                "check": expectation.meta["check"],
                "expectation": expectation.expectation_type,
                "severity": str(expectation.severity.value),
                "requirement": expectation.description,
                "kwargs": expectation.configuration.kwargs,
            }
            for expectation in suite.expectations
        ]
        for name, suite in suites.items()
    }


def profile(name: str, tables: Mapping[str, pd.DataFrame], config: DataConfig) -> pd.DataFrame:
    """Describe every row of the set ``name`` without its text.

    Returns:
        One row for each row of the set: ``id``; ``characters`` of the stripped text, NaN without one; ``text_digest``,
        equal for texts that differ only in case and white space, None without one; ``in_SET``, and ``near_SET`` unless
        ``config`` leaves contamination out, for every set that must not share a text with it. With labels also
        ``label`` and ``label_share``, the share of the set's rows with that label; with prompts ``prompt_characters``,
        as ``characters``; of a perturbed set ``changed``, whether the text is not that of the test set; for every
        column of slices a digest of its values under the same name.
    """
    frame = tables[name]
    columns = {
        "id": frame["id"],
        "characters": _characters(frame["text"]),
        "text_digest": row_keys(frame).map(_digest).astype(object),
    }
    if "label" in frame:
        shares = frame["label"].value_counts(normalize=True)
        columns |= {"label": frame["label"], "label_share": frame["label"].map(shares)}
    if "prompt" in frame:
        columns["prompt_characters"] = _characters(frame["prompt"])
    if name.startswith("perturbed-"):
        columns["changed"] = (frame["text"] != tables["test"]["text"]).astype(float)
    columns |= {column: frame[column].map(_digest) for column in map(str, frame) if column.startswith(SLICE)}
    others = {other: tables[other] for other in held_out_of(name, tables)}
    columns |= {f"in_{other}": shares_text(frame, rows) for other, rows in others.items()}
    if others and config.contamination:
        near = near_duplicates(frame, others, config.contamination)
        columns |= {f"near_{other}": near[other] for other in others}
    return pd.DataFrame(columns)


def _characters(texts: pd.Series) -> pd.Series:
    return texts.map(lambda text: len(text.strip()) or None).astype(float)


def _digest(key: str) -> str | None:
    return hashlib.sha256(key.encode()).hexdigest() if key else None


def _judge(source: Any, table: str, rows: pd.DataFrame, checks: Sequence[Check]) -> list[CheckResult]:
    asset = source.add_dataframe_asset(f"{table}-{checks[0].name}")  # two suites may be about one set
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": rows})
    return _results(table, checks, batch.validate(build_suite(table, checks), result_format=RESULT_FORMAT))


def _results(table: str, checks: Sequence[Check], outcome: Any) -> list[CheckResult]:
    """Translate what Great Expectations found, in the order of the checks."""
    by_name = {found.expectation_config.meta["check"]: found for found in outcome.results}
    return [_result(table, check, by_name[check.name]) for check in checks]


def _result(table: str, check: Check, found: Any) -> CheckResult:
    if not found.result:
        raise StageBug(f"{table}: Great Expectations could not evaluate the check '{check.name}'; report this")
    ids = [str(row) for entry in found.result.get("unexpected_index_list") or () for row in entry["id"]]
    observed = found.result.get("observed_value")
    if isinstance(observed, np.generic):
        observed = observed.item()
    message = check.failure.format(
        num_rows=f"{len(ids)} row{'' if len(ids) == 1 else 's'}",
        rows=name_rows(ids),
        observed=f"{observed:.4g}" if isinstance(observed, float) else observed,
    )
    return CheckResult(
        table=table,
        name=check.name,
        expectation=check.expectation.expectation_type,
        kwargs=check.expectation.configuration.kwargs,
        severity=check.expectation.severity.value,
        success=found.success,
        requirement=check.expectation.description,
        observed=observed,
        unexpected_count=len(ids),
        unexpected_rows=tuple(ids[:LISTED_ROWS]),
        message="" if found.success else f"{table}: {message}",
    )


def _facts(frame: pd.DataFrame, labels: Sequence[str]) -> TableFacts:
    labels = labels if "label" in frame else ()
    counts = frame["label"].value_counts().to_dict() if labels else {}
    characters = frame["text"].map(len)
    return TableFacts(
        rows=len(frame),
        labels={label: int(counts.get(index, 0)) for index, label in enumerate(labels)},
        mean_characters=round(float(characters.mean()), 1),
        max_characters=int(characters.max()),
    )
