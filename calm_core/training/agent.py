"""torchrun for `TorchrunLauncher`: ``python -m calm_core.training.agent ARGUMENTS-OF-TORCHRUN``.

It says nothing of its own: whoever waits tells in one line what torchrun tells in pages. It ends with the process that
started it, and then asks the ranks to save what they are at.

Exit codes: 0 finished, 75 asked to stop, else that of the rank that failed first; 128 + the signal that killed it.
"""

import logging
import os
import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from calm_core.errors import EXIT_INTERRUPTED
from calm_core.telemetry.processes import PARENT_VARIABLE, SIGNALLED, end_with_parent


def main(arguments: Sequence[str]) -> int:
    """Run torchrun; returns its exit code."""
    logging.disable(logging.CRITICAL)
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    os.environ[PARENT_VARIABLE] = str(os.getpid())  # for the ranks
    try:
        run.main(arguments)
    except SignalException:
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        # What the other ranks meet when one is killed, e.g. a lost connection, follows from it.
        codes = [failure.exitcode for failure in sorted(error.failures.values(), key=lambda one: one.timestamp)]
        first = next((code for code in codes if code < 0 and code != -signal.SIGTERM), codes[0])
        return SIGNALLED - first if first < 0 else first
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
