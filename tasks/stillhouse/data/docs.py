"""Data Docs: what Great Expectations' renderer makes of a report, as one page that stands alone.

Great Expectations' own site builder is left out: its pages load scripts and styles from six hosts, hold the time of
writing and random ids, and come with megabytes of images. Its renderer and its templates of results are used.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import great_expectations as gx
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView

from stillhouse.data.report import CheckResult, ValidationReport

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def write_data_docs(report: ValidationReport, folder: Path) -> None:
    """Write ``index.html`` into ``folder``, which is made if need be. Equal reports give equal pages.

    The page needs no other file and no network, and shows of a row no more than its id.

    Raises:
        OSError: The folder can't be written.
    """
    view = DefaultJinjaPageView()
    renderer = ValidationResultsPageRenderer()
    names = dict.fromkeys(check.table for check in report.checks)
    documents = {name: renderer.render(_suite_result(name, report)).to_json_dict() for name in names}
    source = files("stillhouse.data").joinpath("templates/data_docs.html.j2").read_text(encoding="utf-8")
    page = view.env.from_string(source).render(report=report, documents=documents, gx_version=gx.__version__)
    seen: dict[str, str] = {}
    page = UUID.sub(lambda match: seen.setdefault(match[0], f"part-{len(seen)}"), page)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page, encoding="utf-8")


def _suite_result(name: str, report: ValidationReport) -> Any:
    """Put the results of one set back into the form that Great Expectations renders."""
    checks = [check for check in report.checks if check.table == name]
    return ExpectationSuiteValidationResult(
        success=all(check.success for check in checks),
        results=[_expectation_result(check, report.tables[name].rows) for check in checks],
        suite_name=name,
        meta={},
    )


def _expectation_result(check: CheckResult, rows: int) -> Any:
    percent = 100 * check.unexpected_count / rows
    by_row = {
        "element_count": rows,
        "unexpected_count": check.unexpected_count,
        "unexpected_percent": percent,
        "unexpected_percent_total": percent,
    }
    return ExpectationValidationResult(
        success=check.success,
        expectation_config=ExpectationConfiguration(
            type=check.expectation, kwargs=dict(check.kwargs), description=check.requirement, severity=check.severity
        ),
        result=by_row if check.observed is None else {"observed_value": check.observed},
    )
