"""The standard streams, so that nothing in them ends a command with a traceback."""

import io
import os
import signal
import sys

from calm_core.errors import CalmError

_NARROWEST = 20
"""Characters of a terminal."""


class OutputError(CalmError):
    """Standard output takes no more."""


class _Output(io.FileIO):
    """A standard stream; once writing has failed, what else is written goes nowhere.

    Args:
        descriptor: Its number, 1 or 2.

    Raises:
        SystemExit: Whoever read standard output has gone, as `head` does; nobody is left to be told.
        OutputError: It cannot be written. Of standard error there is nothing to tell it with.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]  # bytes of whatever kind
        except OSError as error:
            _to_nowhere(self.fileno())
            if self.fileno() == 2:
                return len(memoryview(data))  # type: ignore[arg-type]  # as above
            if isinstance(error, BrokenPipeError):
                raise SystemExit(128 + signal.SIGPIPE) from None
            raise OutputError(f"standard output cannot be written ({error.strerror}); free some space") from None


def open_streams() -> None:
    """Make the standard streams usable, whatever they are: closed, full, or of an encoding that lacks characters."""
    for name in ("COLUMNS", "TERMINAL_WIDTH"):
        width = os.environ.get(name, "")
        if not (width.isdecimal() and int(width) >= _NARROWEST):
            os.environ.pop(name, None)  # rich would show nothing, or fail
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would take its place, and what is printed
            _to_nowhere(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # it stays open
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        output = io.BufferedWriter(_Output(descriptor))
        stream = io.TextIOWrapper(
            output,
            encoding=before.encoding if before else "utf-8",
            errors="replace" if descriptor == 1 else "backslashreplace",
            line_buffering=descriptor == 2 or output.isatty() or getattr(before, "write_through", False),
        )
        setattr(sys, name, stream)


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
