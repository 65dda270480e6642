"""A request to stop that comes while processes are being started."""

import os
import signal
import threading
import time

import pytest

from calm_core.data.preparing import workers
from calm_core.errors import Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_it_waits_until_they_are_started(number: signal.Signals) -> None:
    """Also where another thread takes the signal: its handler runs in this one, whatever this one blocks."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    other = threading.Event()
    thread = threading.Thread(target=other.wait)
    thread.start()
    before, started = signal.signal(number, stop), False
    try:
        with pytest.raises(Stopped), workers._without_the_terminal():
            os.kill(os.getpid(), number)
            time.sleep(0.2)
            started = True
        assert started
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
        other.set()
        thread.join()


def test_what_is_ignored_or_left_to_the_system_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with workers._without_the_terminal():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
