"""Processes: what is said of one that ended without a word, and ending with the one that was started by."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PARENT_VARIABLE = "CALM_PARENT_PID"
"""Who starts a process that calls `end_with_parent` says here who it is: it may be gone before the process can look."""
_PARENT_SECONDS = 1.0  # between two looks at whether the parent is there
SIGNALLED = 128
"""A shell, and we, end with this much more than the signal that has ended a command."""


def killed_by(exit_code: int) -> str:
    """How a signal has ended a process, for people; empty where none has.

    Args:
        exit_code: As `subprocess` tells it, or as a shell does of its command.
    """
    number = -exit_code if exit_code < 0 else exit_code - SIGNALLED
    if number not in {*signal.Signals}:
        return ""
    name = signal.Signals(number).name
    if number != signal.SIGKILL:
        return f"was ended by {name}"
    return f"was killed ({name}), perhaps for want of memory: this machine has {machine_bytes() / 2**30:,.1f} GiB"


def machine_bytes() -> int:
    """Memory of this machine, or of the container if it may use less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def end_with_parent(end: Callable[[], object]) -> None:
    """Watch whether the process that started this one is gone, so that nothing works on unwatched.

    Args:
        end: Called then, in a thread.
    """
    parent = int(os.environ.get(PARENT_VARIABLE) or os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True).start()
