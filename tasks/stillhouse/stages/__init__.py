"""One module per task of a workflow. Each wires the rooms of the house together, and is short."""

from stillhouse.stages.catalog import CATALOG, StageSpec, find_reusable, key_of
from stillhouse.stages.context import StageContext, StageOutcome
from stillhouse.stages.ranks import follow_stage, follows
from stillhouse.stages.records import read_records
from stillhouse.stages.runner import run_stage, stop_on_sigterm

__all__ = [
    "CATALOG",
    "StageContext",
    "StageOutcome",
    "StageSpec",
    "find_reusable",
    "follow_stage",
    "follows",
    "key_of",
    "read_records",
    "run_stage",
    "stop_on_sigterm",
]
