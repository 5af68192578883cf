"""Validating the sets of a run with Great Expectations. Importing this takes seconds."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd

from stillhouse.contract import StageBug
from stillhouse.data.checks import Check, build_checks, build_suite
from stillhouse.data.prepare import Tables, held_out_of, shares_text
from stillhouse.data.report import LISTED_ROWS, CheckResult, TableFacts, ValidationReport
from stillhouse.data.tables import name_rows, row_keys
from stillhouse.recipe import DataConfig

RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "unexpected_index_column_names": ["id"],
    "exclude_unexpected_values": True,
    "partial_unexpected_count": 0,
}
"""Rows that fail are named by id; their values stay out."""


def validate(tables: Tables, config: DataConfig) -> ValidationReport:
    """Run the suite of every set.

    Args:
        tables: The sets of a run.
        config: Section ``data`` of the recipe.

    Returns:
        The report, whether or not the data passed; see `reject_if_critical`.

    Raises:
        StageBug: An expectation could not be evaluated.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    source = context.data_sources.add_pandas("stillhouse")
    results: list[CheckResult] = []
    for name in tables:
        checks = build_checks(name, tables, config)
        asset = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        batch = asset.get_batch({"dataframe": profile(name, tables)})
        outcome = batch.validate(build_suite(name, checks), result_format=RESULT_FORMAT)
        results += _results(name, checks, outcome)
    return ValidationReport(
        success=all(result.success for result in results if result.severity == "critical"),
        tables={name: _facts(frame, config.labels) for name, frame in tables.items()},
        dropped=tables.dropped,
        checks=tuple(results),
    )


def suites_as_json(names: Collection[str], config: DataConfig) -> dict[str, Any]:
    """Return the suites of all sets as plain data, for people to review and for a snapshot to pin."""
    suites = {name: build_suite(name, build_checks(name, names, config)) for name in names}
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


def profile(name: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Describe every row of the set ``name`` without its text.

    Returns:
        One row for each row of the set: ``id``; ``characters`` of the stripped text, NaN without one; ``text_digest``,
        equal for texts that differ only in case and white space, None without one; ``in_SET`` for every set that must
        not share a text with it. With labels also ``label`` and ``label_share``, the share of the set's rows with that
        label; with prompts ``prompt_characters``, as ``characters``.
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
    return pd.DataFrame(columns | {f"in_{o}": shares_text(frame, tables[o]) for o in held_out_of(name, tables)})


def _characters(texts: pd.Series) -> pd.Series:
    return texts.map(lambda text: len(text.strip()) or None).astype(float)


def _digest(key: str) -> str | None:
    return hashlib.sha256(key.encode()).hexdigest() if key else None


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
    counts = frame["label"].value_counts().to_dict() if labels else {}
    characters = frame["text"].map(len)
    return TableFacts(
        rows=len(frame),
        labels={label: int(counts.get(index, 0)) for index, label in enumerate(labels)},
        mean_characters=round(float(characters.mean()), 1),
        max_characters=int(characters.max()),
    )
