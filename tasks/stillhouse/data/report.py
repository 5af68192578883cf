"""What validation found: the file ``validation.json`` of a run, and the error that a failure becomes."""

from typing import Any, Literal

from pydantic import Field

from stillhouse.contract import DataRejected
from stillhouse.data.prepare import Dropped
from stillhouse.recipe import Config

LISTED_ROWS = 20
"""Rows that a check lists at most."""


class CheckResult(Config):
    """What one expectation found in one set."""

    table: str
    name: str
    """What is checked: ``rows``, ``duplicates``, ``leak-test`` …"""
    expectation: str
    """Type of the Great Expectations expectation behind it."""
    kwargs: dict[str, Any]
    """Its arguments; ``column`` is one of the set's profile, see `stillhouse.data.suites.profile`."""
    severity: Literal["critical", "warning"]
    """``critical`` stops the run, ``warning`` only shows."""
    success: bool
    requirement: str
    """What is asked for, in words."""
    observed: int | float | str | None = None
    """The figure that was judged; None for checks that look at each row."""
    unexpected_count: int = Field(default=0, ge=0)
    """Rows that don't meet it."""
    unexpected_rows: tuple[str, ...] = Field(default=(), max_length=LISTED_ROWS)
    """Ids of the first of them. Nothing else of a row is kept."""
    message: str = ""
    """For a failed check: one line that says what is wrong and what to do."""


class TableFacts(Config):
    """A set in figures."""

    rows: int = Field(ge=0)
    labels: dict[str, int]
    """Rows of each label; empty for language modelling."""
    mean_characters: float
    max_characters: int


class ValidationReport(Config):
    """All checks of a run's data. Equal data and settings give an equal report."""

    schema_id: Literal["stillhouse/validation/1"] = "stillhouse/validation/1"
    success: bool
    """Whether every critical check passed."""
    tables: dict[str, TableFacts]
    dropped: dict[str, Dropped]
    """By table of the recipe: the rows that cleaning and sampling took away."""
    checks: tuple[CheckResult, ...]

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The critical checks that failed."""
        return tuple(check for check in self.checks if not check.success and check.severity == "critical")

    @property
    def warnings(self) -> tuple[CheckResult, ...]:
        """The other checks that failed."""
        return tuple(check for check in self.checks if not check.success and check.severity == "warning")


def reject_if_critical(report: ValidationReport) -> None:
    """Let accepted data pass.

    Raises:
        DataRejected: A critical check failed. One line names the first one and says how many others there are.
    """
    if report.failures:
        first, *others = report.failures
        more = f" ({len(others)} more check{'s' if len(others) > 1 else ''} failed, see the report)" if others else ""
        raise DataRejected(first.message + more)
