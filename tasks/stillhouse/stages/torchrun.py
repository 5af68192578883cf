"""``torchrun`` that ends as its processes did: a plain one has exit code 1 whatever happened to them.

::

    python -m stillhouse.stages.torchrun --standalone --nproc-per-node=2 -m stillhouse.cli stage distill …
"""

import signal
import sys
from collections.abc import Iterable

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

from stillhouse.contract import ExitCode

_ENDED_BY_TORCHRUN = (-signal.SIGTERM, ExitCode.INTERRUPTED)
"""How a process ends that is told to: at once, or orderly as a stage does."""


def main() -> int:
    """Run what the command line says, and return the exit code of the process that failed first.

    A signal counts as 128 and its number, as a shell has it.
    """
    try:
        torchrun()
    except ChildFailedError as error:
        return exit_code_of_failures(error.failures.values())
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def exit_code_of_failures(failures: Iterable[ProcessFailure]) -> int:
    """Return the exit code of the first failure; of those that were seen at once, a killed process's goes first.

    The others fail because of it: their peer is gone, or torchrun ends them.
    """

    def order(failure: ProcessFailure) -> tuple[bool, int, bool, bool]:
        code = failure.exitcode
        return code in _ENDED_BY_TORCHRUN, failure.timestamp, code > 0, code == ExitCode.TRY_AGAIN

    first = min(failures, key=order)
    return first.exitcode if first.exitcode > 0 else 128 - first.exitcode


if __name__ == "__main__":
    sys.exit(main())
