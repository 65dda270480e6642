"""The log file of a training: what its ranks print, over all its starts."""

import logging
from logging.handlers import RotatingFileHandler

from calm_core.shown import lines_of

_BYTES = 8 << 20
"""Of a log; one that gets larger becomes LOG.1, in the place of an earlier one."""


class TrainingLog(RotatingFileHandler):
    """A file of lines, each with its time and who said it. It is appended to and bounded.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, maxBytes=_BYTES, backupCount=1, encoding="utf-8", errors="replace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))

    def say(self, who: str, text: str) -> None:
        """Write what somebody says; without secrets, and an empty line not at all."""
        for line in lines_of(text).splitlines():
            if line.strip():
                self.handle(logging.makeLogRecord({"name": who, "msg": line}))

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on: a full disk ends no training, and standard error has the line too."""
