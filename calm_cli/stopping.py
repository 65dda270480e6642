"""Ctrl-C, a request to end, and a closed terminal: each ends the program with one line, and leaves nothing at work."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from calm_core.errors import Stopped

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "the terminal was closed"}
_SECONDS = 5.0
"""What Python's own end may take, and a library's code before it lets a signal be seen."""
_AT_ONCE = 1.0
"""Seconds in which a signal that is no Ctrl-C is the same request again: both the shell and the system tell of a closed
terminal."""


class Ending:
    """How this program ends when it is asked to.

    A signal raises `Stopped` in the main thread, so that what is open is closed; so does a second one, of somebody who
    does not want to wait for that. Another one ends the process as it is. One that is told twice at once counts once.
    """

    def __init__(self) -> None:
        self._asked = self._seen = 0
        self._same_until = 0.0
        self._is_over = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals while the block lasts; if one has ended it, so ends the process.

        Raises:
            SystemExit: A signal has ended the block; 128 + its number.
        """
        # What this process is to ignore, as nohup asks for, it ignores.
        caught = [number for number in _NAMES if signal.getsignal(number) != signal.SIG_IGN]
        for number in caught:
            signal.signal(number, self._stop)
        sys.unraisablehook = self._again_later
        self._watch()
        try:
            yield
        except BaseException as error:
            if stopped := stop_behind(error):
                self._end(stopped)
            raise

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._seen += 1
        if number != signal.SIGINT and time.monotonic() < self._same_until:
            return
        self._asked += 1
        self._same_until = time.monotonic() + _AT_ONCE
        if self._is_over or self._asked > 2:
            _end_now(number)
        raise Stopped(number)

    def _again_later(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Send a signal again that came where Python raises nothing, e.g. while an object was removed."""
        if isinstance(unraisable.exc_value, Stopped):
            self._asked -= 1
            self._same_until = 0.0
            threading.Timer(0.1, os.kill, (os.getpid(), unraisable.exc_value.signal_number)).start()
        else:
            sys.__unraisablehook__(unraisable)

    def _watch(self) -> None:
        """End the process also where a library does not return to Python, which alone runs `_stop`."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def watch() -> None:
            received = 0
            while number := os.read(reader, 1)[0]:
                if signal.getsignal(number) != self._stop:  # somebody else takes it, e.g. to save a checkpoint first
                    continue
                received, until = received + 1, time.monotonic() + _SECONDS
                while self._seen < received:
                    if time.monotonic() > until:
                        _say(Stopped(number))
                        _end_now(number)
                    time.sleep(0.1)

        threading.Thread(target=watch, daemon=True).start()

    def _end(self, stopped: Stopped) -> NoReturn:
        self._is_over = True
        _say(stopped)
        if self._asked > 1:
            _end_now(stopped.signal_number)
        over = threading.Timer(_SECONDS, _end_now, (stopped.signal_number,))
        over.daemon = True
        over.start()
        sys.exit(128 + stopped.signal_number)


def stop_behind(error: BaseException | None) -> Stopped | None:
    """The signal that an error comes of, if one does: what is closed after a signal may fail in turn."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


def _say(stopped: Stopped) -> None:
    name = _NAMES[signal.Signals(stopped.signal_number)]
    with suppress(OSError, ValueError):  # the terminal is gone
        print(f"stopped ({name}); {stopped.again}", file=sys.stderr, flush=True)


def _end_now(number: int) -> NoReturn:
    """End this process and all below it, as they are."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(128 + number)
