"""Errors that a user can cause. Each message is one line: what is wrong, where, and what to do."""

import re
from typing import ClassVar

from calm_core.shown import shortened

EXIT_FAILED, EXIT_WRONG_SETTINGS, EXIT_NOTHING_NEW, EXIT_INTERRUPTED = 1, 2, 3, 75
"""Exit codes of a process: 3 of a retraining without new text; 75 is the system's own for "try again" (EX_TEMPFAIL)."""


_ERROR_NUMBER = re.compile(r"^\[Errno -?\d+\] ")
LONGEST_MESSAGE = 1500
"""Characters of a message; a few URIs and names fit."""


class CalmError(Exception):
    """Base of all errors that are shown to the user as one line, without a traceback.

    Messages name settings and arguments; the command line adds its options. Whatever goes into one, it is one visible
    line of bounded length without secrets.

    Args:
        message: What is wrong, where, and what to do.
        can_pass: Whether the same command can succeed when nothing but time has passed, or what stood in its way has
            gone; unset, as its kind says. Its message then says to run it again.
    """

    exit_code: ClassVar[int] = EXIT_FAILED
    can_pass: bool = False

    def __init__(self, message: str, *, can_pass: bool | None = None) -> None:
        super().__init__(shortened(message, LONGEST_MESSAGE))
        if can_pass is not None:
            self.can_pass = can_pass


class ConfigError(CalmError):
    """A setting is unknown, impossible, or contradicts another one."""

    exit_code = EXIT_WRONG_SETTINGS


class SourceError(CalmError):
    """A source of text is missing, unreadable, or mostly unusable."""


class ArtifactError(CalmError):
    """An artifact is missing, half-written, damaged, or of another kind than expected."""


class StorageError(CalmError):
    """The storage failed again and again."""


class Interrupted(CalmError):
    """The run was asked to stop; what it has done is saved, and the next run continues from there."""

    exit_code = EXIT_INTERRUPTED
    can_pass = True


class Stopped(BaseException):
    """Somebody, or the system, has asked this process to end. It passes what catches errors, and ends all that is open.

    Attributes:
        signal_number: What came: SIGINT (Ctrl-C), SIGTERM, or SIGHUP (the terminal was closed).
        again: What running the same command again does.
    """

    def __init__(self, signal_number: int, again: str = "run the same command again to begin anew") -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number
        self.again = again


def first_line(error: Exception) -> str:
    """What an error says, on one short line: the libraries' messages may have several, or none.

    Of the system's errors it is their words: who tells them on knows the file, and nobody the number.
    """
    text = str((isinstance(error, OSError) and error.strerror) or error)
    line = _ERROR_NUMBER.sub("", (text.splitlines() or [""])[0])
    return shortened(line or type(error).__name__, LONGEST_MESSAGE // 3)
