"""MLflow as a view of what the runs stored: one parent run per workflow run, one nested run per task."""

from stillhouse.tracking.runs import Tracking

__all__ = ["Tracking"]
