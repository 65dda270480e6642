"""Ends a rank that makes no progress, with the stack of every thread on its standard error."""

import faulthandler
import signal
from types import TracebackType
from typing import Self

_STANDARD_ERROR = 2
_GRACE = 0.1
"""Share of the limit between a rank's stacks and its end: the ranks of a job were last alive at slightly different
moments, and each is to show where it stands before the first one ends and takes the others with it."""


class Watchdog:
    """Watches one rank while the block lasts: the limit runs from its beginning, and anew from each sign of life.

    At the limit the stacks are written, a little later the kernel ends the process by SIGALRM. Both need no Python: a
    thread of C writes, so that a rank is seen which holds the interpreter's lock or waits in a collective operation.

    Args:
        seconds: How long a rank may be without a sign of life; 0: for ever.

    Example:
        >>> with Watchdog(config.stuck_after_seconds) as watchdog:
        ...     for batch in batches:
        ...         step(batch)
        ...         watchdog.alive()
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        self.alive()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def alive(self) -> None:
        """Say that there is progress: a step, a batch of a validation, a part of a checkpoint."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, file=_STANDARD_ERROR)
            signal.setitimer(signal.ITIMER_REAL, self._seconds * (1 + _GRACE))

    def stop(self) -> None:
        """Watch no longer, e.g. while the finished model is written to a storage of unknown speed."""
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
