import signal
from datetime import timedelta

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowTaskTimeout

from stillhouse.contract import ConfigurationError, DataRejected, NotPermitted, StageBug, TryAgain
from stillhouse.orchestration.airflow import RETRY_POLICY, StageKilled, error_of_exit
from stillhouse.recipe import RecipeError


@pytest.mark.parametrize(
    ("code", "kind", "action"),
    [
        (65, DataRejected, RetryAction.FAIL),
        (70, StageBug, RetryAction.FAIL),
        (75, TryAgain, RetryAction.RETRY),
        (77, NotPermitted, RetryAction.FAIL),
        (78, ConfigurationError, RetryAction.FAIL),
        (1, StageBug, RetryAction.FAIL),
        (2, StageBug, RetryAction.FAIL),
        (137, StageKilled, RetryAction.RETRY),
        (143, StageKilled, RetryAction.RETRY),
        (-signal.SIGKILL, StageKilled, RetryAction.RETRY),
        (-signal.SIGSEGV, StageKilled, RetryAction.RETRY),
    ],
)
def test_exit_code_decides_about_another_try(code: int, kind: type[Exception], action: RetryAction) -> None:
    error = error_of_exit(code, "")

    assert type(error) is kind
    assert RETRY_POLICY.evaluate(error, try_number=1, max_tries=2).action is action


def test_recorded_message_is_kept() -> None:
    assert str(error_of_exit(65, "table train: rows 3, 4 have no label")) == "table train: rows 3, 4 have no label"


def test_kill_without_a_word_hints_at_memory() -> None:
    assert "SIGKILL (out of memory?)" in str(error_of_exit(-9, ""))


@pytest.mark.parametrize("error", [RecipeError("no"), KeyError("defect")])
def test_errors_of_the_operator_itself_are_final(error: Exception) -> None:
    assert RETRY_POLICY.evaluate(error, try_number=1, max_tries=2).action is RetryAction.FAIL


def test_timeout_is_tried_again() -> None:
    assert RETRY_POLICY.evaluate(AirflowTaskTimeout(), try_number=1, max_tries=2).action is RetryAction.RETRY


def test_policy_leaves_the_delay_to_the_task() -> None:
    decision = RETRY_POLICY.evaluate(TryAgain("full disk"), try_number=1, max_tries=2)

    assert decision.retry_delay in (None, timedelta(0))
