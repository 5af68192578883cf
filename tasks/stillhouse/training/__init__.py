"""The training engine, for teachers and students alike."""

from stillhouse.training.engine import TrainingJob, TrainingOutcome, fit

__all__ = ["TrainingJob", "TrainingOutcome", "fit"]
