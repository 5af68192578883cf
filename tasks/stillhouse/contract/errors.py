"""Every way in which a stage can fail, and the exit code that tells Airflow what to do about it.

::

    StillhouseError
    ├── DataRejected          65  the data, the evidence or a stored file is not what it must be; a retry can't help
    │   └── IntegrityError    65  stored bytes differ from their digest
    ├── StageBug              70  a defect in Stillhouse
    ├── TryAgain              75  a server is away, a disk is full: the same request may succeed later
    │   └── Conflict          75  somebody else wrote first; read again and decide anew
    ├── NotPermitted          77  a policy, a licence or a credential forbids it
    └── ConfigurationError    78  a recipe, request or setting is wrong

`stillhouse.recipe.RecipeError` (a ``ValueError``, since the recipe room imports nothing of ours) counts as 78, any
other exception as 70. A killed process has exit code 137 (or -9 to its parent) and may be tried again: it resumes.
"""

from enum import IntEnum

from stillhouse.recipe import RecipeError


class ExitCode(IntEnum):
    """Exit codes of ``stillhouse``, in the manner of ``sysexits.h``."""

    OK = 0
    NOT_PROMOTED = 3
    """The workflow ran to its end and its verdict is not "promote"."""
    DATA = 65
    BUG = 70
    TRY_AGAIN = 75
    NOT_PERMITTED = 77
    CONFIGURATION = 78
    INTERRUPTED = 130
    KILLED = 137


class StillhouseError(Exception):
    """Base of all errors that Stillhouse raises on purpose. The message is one line: what, and what to do."""

    exit_code = ExitCode.BUG


class DataRejected(StillhouseError):
    """The data, the evidence or a stored file is not what it must be; a retry can't help."""

    exit_code = ExitCode.DATA


class IntegrityError(DataRejected):
    """Stored bytes differ from their digest."""


class StageBug(StillhouseError):
    """A defect in Stillhouse."""


class TryAgain(StillhouseError):
    """A server is away, a disk is full: the same request may succeed later."""

    exit_code = ExitCode.TRY_AGAIN


class Conflict(TryAgain):
    """Somebody else wrote first; read again and decide anew."""


class NotPermitted(StillhouseError):
    """A policy, a licence or a credential forbids it."""

    exit_code = ExitCode.NOT_PERMITTED


class ConfigurationError(StillhouseError):
    """A recipe, request or setting is wrong."""

    exit_code = ExitCode.CONFIGURATION


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code that carries ``error`` to whoever started the process."""
    if isinstance(error, StillhouseError):
        return error.exit_code
    if isinstance(error, RecipeError):
        return ExitCode.CONFIGURATION
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return ExitCode.BUG
