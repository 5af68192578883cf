"""An Airflow operator for TrainJobs of Kubeflow Trainer v2 (``trainer.kubeflow.org/v1alpha1``).

A TrainJob is made, followed and removed as a custom object through Airflow's Kubernetes hook. The Kubeflow SDK is not
needed: it wants another version of the Kubernetes client. Nothing outside this package is imported but Airflow.

The TrainJob's name follows from the task instance, whatever its try. So the API server knows all that a later try must
know, and Airflow's ``ResumableJobMixin`` is not used: it writes down an identifier after the job was made, and makes
another one where the worker died in between.
"""

from stillhouse.orchestration.airflow.trainjob.ends import (
    DEADLINE_EXCEEDED,
    VANISHED,
    TrainJobEnd,
    TrainJobFailed,
    TrainJobNameTaken,
    TrainJobNotStarted,
    TrainJobStillThere,
)
from stillhouse.orchestration.airflow.trainjob.operator import TrainJobOperator

__all__ = [
    "DEADLINE_EXCEEDED",
    "VANISHED",
    "TrainJobEnd",
    "TrainJobFailed",
    "TrainJobNameTaken",
    "TrainJobNotStarted",
    "TrainJobOperator",
    "TrainJobStillThere",
]
