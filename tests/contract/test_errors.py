import pytest

from stillhouse.contract import (
    ConfigurationError,
    Conflict,
    DataRejected,
    ExitCode,
    IntegrityError,
    NotPermitted,
    StageBug,
    StillhouseError,
    TryAgain,
    exit_code_of,
)
from stillhouse.recipe import RecipeError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataRejected("x"), 65),
        (IntegrityError("x"), 65),
        (StageBug("x"), 70),
        (StillhouseError("x"), 70),
        (TryAgain("x"), 75),
        (Conflict("x"), 75),
        (NotPermitted("x"), 77),
        (ConfigurationError("x"), 78),
        (RecipeError("x"), 78),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 70),
        (MemoryError(), 70),
    ],
)
def test_an_error_has_the_exit_code_that_airflow_acts_on(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def test_no_two_outcomes_share_an_exit_code() -> None:
    assert len({int(code) for code in ExitCode}) == len(ExitCode.__members__)


def test_only_what_may_pass_is_caught_as_try_again() -> None:
    assert issubclass(Conflict, TryAgain)
    assert not issubclass(TryAgain, DataRejected)
    assert not issubclass(RecipeError, StillhouseError)
