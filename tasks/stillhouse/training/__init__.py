"""The training engine, for teachers and students alike; `distill` runs a recipe's training from Python."""

from stillhouse.training.distill import distill, prepare_teacher, start_student, train_arm
from stillhouse.training.engine import TrainingJob, TrainingOutcome, fit
from stillhouse.training.knowledge import OpenedCache, open_cache, open_server_cache, write_shard

__all__ = [
    "OpenedCache",
    "TrainingJob",
    "TrainingOutcome",
    "distill",
    "fit",
    "open_cache",
    "open_server_cache",
    "prepare_teacher",
    "start_student",
    "train_arm",
    "write_shard",
]
