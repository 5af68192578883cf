"""Measuring models: records, figures with intervals, speeds, plots, the report.

Names are imported when they are first used: printing a table at the end of a run must not wait for matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.evaluation.console import models_table, render_text, rules_table
    from stillhouse.evaluation.plots import loss_curves, quality_against_latency, reliability, to_png, to_svg
    from stillhouse.evaluation.records import read_records, score, write_records
    from stillhouse.evaluation.report import Check, ReportInputs, TableFacts, render_card, render_report
    from stillhouse.evaluation.summary import SuiteInfo, summarise
    from stillhouse.evaluation.timing import measure

MODULES = {
    "console": ("models_table", "render_text", "rules_table"),
    "plots": ("loss_curves", "quality_against_latency", "reliability", "to_png", "to_svg"),
    "records": ("read_records", "score", "write_records"),
    "report": ("Check", "ReportInputs", "TableFacts", "render_card", "render_report"),
    "summary": ("SuiteInfo", "summarise"),
    "timing": ("measure",),
}
"""Which module holds which public names."""

__all__ = [
    "Check",
    "ReportInputs",
    "SuiteInfo",
    "TableFacts",
    "loss_curves",
    "measure",
    "models_table",
    "quality_against_latency",
    "read_records",
    "reliability",
    "render_card",
    "render_report",
    "render_text",
    "rules_table",
    "score",
    "summarise",
    "to_png",
    "to_svg",
    "write_records",
]


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
