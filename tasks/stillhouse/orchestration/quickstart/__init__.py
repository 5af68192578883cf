"""A whole workflow on one machine: real servers, one run, the verdict. Needs neither Airflow nor torch to import."""

from stillhouse.orchestration.quickstart.follow import RunEnd, follow_run
from stillhouse.orchestration.quickstart.processes import ServerProcess
from stillhouse.orchestration.quickstart.rest import AirflowClient, TaskState
from stillhouse.orchestration.quickstart.run import run_quickstart
from stillhouse.orchestration.quickstart.servers import Servers, running_servers, start_servers, wait_until_ready
from stillhouse.orchestration.quickstart.settings import RunFolder, choose_port

__all__ = [
    "AirflowClient",
    "RunEnd",
    "RunFolder",
    "ServerProcess",
    "Servers",
    "TaskState",
    "choose_port",
    "follow_run",
    "run_quickstart",
    "running_servers",
    "start_servers",
    "wait_until_ready",
]
