"""Reading, cleaning, splitting and freezing data. `stillhouse.data.suites` and `stillhouse.data.docs` are not imported
here: Great Expectations, which they need, takes seconds to import."""

from stillhouse.data.frozen import freeze, load_frozen
from stillhouse.data.prepare import Tables, load_tables
from stillhouse.data.report import CheckResult, Dropped, TableFacts, ValidationReport, reject_if_critical
from stillhouse.data.tables import read_table

__all__ = [
    "CheckResult",
    "Dropped",
    "TableFacts",
    "Tables",
    "ValidationReport",
    "freeze",
    "load_frozen",
    "load_tables",
    "read_table",
    "reject_if_critical",
]
