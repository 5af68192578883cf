"""What a stage's exit code means to Airflow: an exception that says why, and whether to try again."""

import signal

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowTaskTimeout

from stillhouse.contract import (
    ConfigurationError,
    DataRejected,
    ExitCode,
    NotPermitted,
    StageBug,
    StillhouseError,
    TryAgain,
)


class StageKilled(TryAgain):
    """The process was killed. The next try resumes from the last checkpoint."""


EXCEPTIONS: dict[int, type[StillhouseError]] = {
    ExitCode.DATA: DataRejected,
    ExitCode.BUG: StageBug,
    ExitCode.TRY_AGAIN: TryAgain,
    ExitCode.NOT_PERMITTED: NotPermitted,
    ExitCode.CONFIGURATION: ConfigurationError,
}

RETRY_POLICY = ExceptionRetryPolicy(
    rules=[
        RetryRule(exception=StageKilled, action=RetryAction.RETRY, reason="killed: resumes from its last checkpoint"),
        RetryRule(exception=TryAgain, action=RetryAction.RETRY, reason="may succeed later"),
        RetryRule(
            exception=AirflowTaskTimeout, action=RetryAction.RETRY, reason="timed out: resumes from a checkpoint"
        ),
    ],
    default=RetryAction.FAIL,
)
"""Only what may pass is tried again: exit codes 75 and 137, and a timeout. Everything else fails at once."""


def error_of_exit(returncode: int, message: str) -> StillhouseError:
    """Return the exception for a stage that ended with ``returncode``.

    Args:
        returncode: As `subprocess.Popen.returncode`: negative for a signal. A shell's 128 + signal counts the same.
        message: What the stage recorded about its end, or an empty string.
    """
    killed_by = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else None
    if killed_by is not None:
        return StageKilled(message or f"killed by {_signal_name(killed_by)}; it resumes from its last checkpoint")
    kind = EXCEPTIONS.get(returncode, StageBug)
    return kind(message or f"ended with exit code {returncode}; the log above has the reason")


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (out of memory?)" if number == signal.SIGKILL else name
