"""Measuring models: records, figures with intervals, speeds, the report and its cards.

Names are imported when they are first used: printing a table at the end of a run must not wait for matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.evaluation.asking import ask
    from stillhouse.evaluation.blocks import SuiteInfo
    from stillhouse.evaluation.cards import render_card, render_model_card
    from stillhouse.evaluation.console import render_text
    from stillhouse.evaluation.harness import Benchmark, build_benchmarks
    from stillhouse.evaluation.records import read_records, score, write_records
    from stillhouse.evaluation.report import Check, ReportInputs, TableFacts, render_report
    from stillhouse.evaluation.significance import proportion_estimate
    from stillhouse.evaluation.summary import summarise
    from stillhouse.evaluation.tables import TaskCost
    from stillhouse.evaluation.timing import Timed, measure, weights_bytes

MODULES = {
    "asking": ("ask",),
    "blocks": ("SuiteInfo",),
    "cards": ("render_card", "render_model_card"),
    "console": ("render_text",),
    "harness": ("Benchmark", "build_benchmarks"),
    "records": ("read_records", "score", "write_records"),
    "report": ("Check", "ReportInputs", "TableFacts", "render_report"),
    "significance": ("proportion_estimate",),
    "summary": ("summarise",),
    "tables": ("TaskCost",),
    "timing": ("Timed", "measure", "weights_bytes"),
}
"""Which module holds which public names."""

__all__ = [
    "Benchmark",
    "Check",
    "ReportInputs",
    "SuiteInfo",
    "TableFacts",
    "TaskCost",
    "Timed",
    "ask",
    "build_benchmarks",
    "measure",
    "proportion_estimate",
    "read_records",
    "render_card",
    "render_model_card",
    "render_report",
    "render_text",
    "score",
    "summarise",
    "weights_bytes",
    "write_records",
]


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
