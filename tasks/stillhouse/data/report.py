"""What validation found: the file ``validation.json`` of a run, and the error that a failure becomes."""

from typing import Any, Literal

from pydantic import Field

from stillhouse.contract import DataRejected, IntegrityCheck
from stillhouse.recipe import Config

LISTED_ROWS = 20
"""Rows that a check lists at most."""


class Dropped(Config):
    """Rows that a table of the recipe lost on its way into the run."""

    duplicates: int = Field(default=0, ge=0)
    """Later rows of a text that occurs more than once."""
    conflicting: int = Field(default=0, ge=0)
    """Those of the duplicates whose label differs from that of the row that was kept."""
    held_out: int = Field(default=0, ge=0)
    """Rows whose text occurs in a set that the table must not share texts with."""
    sampled: int = Field(default=0, ge=0)
    """Rows beyond ``max_rows``."""
    contaminated: int = Field(default=0, ge=0)
    """Rows whose text almost occurs in a set that theirs must not share texts with. Those of a ``validation`` that was
    cut out of ``train`` count there."""


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


CoverageName = Literal["coverage", "auroc", "length_distance", "script_distance", "language_distance", "label_distance"]


class CoverageFigure(Config):
    """One comparison of the training set with the reference; see `stillhouse.data.coverage.measure_coverage`."""

    value: float = Field(ge=0, le=1)
    low: float
    high: float
    """Bounds of the interval at 95 %."""
    num_train: int = Field(ge=1)
    num_reference: int = Field(ge=1)
    """Texts that were compared."""


class ValidationReport(Config):
    """All checks of a run's data. Equal data and settings give an equal report."""

    schema_id: Literal["stillhouse/validation/2"] = "stillhouse/validation/2"
    success: bool
    """Whether every critical check passed."""
    tables: dict[str, TableFacts]
    dropped: dict[str, Dropped]
    """By table of the recipe: the rows that cleaning and sampling took away."""
    checks: tuple[CheckResult, ...]
    coverage: dict[CoverageName, CoverageFigure] = {}
    """Empty without a reference."""
    integrity: tuple[IntegrityCheck, ...]
    """What the checks say about leaks, near-duplicates and coverage, for the gate."""

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
