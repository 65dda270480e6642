"""Processes: what is said of one that ended without a word, and ending with the one that was started by."""

import ctypes
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PARENT_VARIABLE = "CALM_PARENT_PID"
"""Who starts a process that calls `end_with_parent` says here who it is: it may be gone before the process can look."""
PROCESSES_VARIABLE = "CALM_PROCESSES"
"""Who starts several tasks on one machine says here how many processes each may have."""
_PARENT_SECONDS = 0.5  # between two looks at whether the parent is there
_PR_SET_PDEATHSIG = 1  # prctl(2)
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # cgroups(7)
SIGNALLED = 128
"""A shell, and we, end with this much more than the signal that has ended a command."""


def killed_by(exit_code: int, *, for_memory: bool = False) -> str:
    """How a signal has ended a process, for people; empty where none has.

    Args:
        exit_code: As `subprocess` tells it, or as a shell does of its command.
        for_memory: Whether the kernel is known to have killed a process of this kind for want of memory (`oom_kills`).
    """
    number = -exit_code if exit_code < 0 else exit_code - SIGNALLED
    if number not in {*signal.Signals}:
        return ""
    name = signal.Signals(number).name
    if number != signal.SIGKILL:
        return f"was ended by {name}"
    why = "by the kernel for want of memory" if for_memory else f"({name}), perhaps for want of memory"
    return f"was killed {why}: this machine has {machine_bytes() / 2**30:,.1f} GiB"


def machine_bytes() -> int:
    """Memory of this machine, or of the container if it may use less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int((group / name).read_text()))
    return min(limits)


def machine_cores() -> int:
    """Cores that this process may use of this machine, or of the container, a part of one counted whole."""
    limits = [float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)]
    for group in _groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):  # not there, or "max"
                quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
                if quota > 0:
                    limits.append(quota / period)
    return math.ceil(min(limits))


def room_for_processes(each_bytes: int) -> int:
    """How many processes this machine or container has cores and memory for; at most CALM_PROCESSES, if that is set."""
    told = os.environ.get(PROCESSES_VARIABLE, "")
    most = int(told) if told.isdecimal() else machine_cores()
    return max(1, min(most, machine_cores(), machine_bytes() // each_bytes))


def peak_bytes() -> int:
    """Largest resident set that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory in this process's control group, so far."""
    for group in _groups("memory"):
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                counts = dict(line.split() for line in (group / name).read_text().splitlines())
                return int(counts.get("oom_kill", 0))
    return 0


def _groups(controller: str) -> Iterator[Path]:
    """The folders in which Linux says what this process may use of memory or cpu, of both its versions: the nearest
    first."""
    with suppress(OSError):  # there are none elsewhere
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                group = _GROUPS / controllers / path.lstrip("/")  # in a container it may not be seen, but one above it
                yield from (one for one in (group, *group.parents) if one.is_relative_to(_GROUPS))


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


def die_with_parent() -> None:
    """Be killed when the process that started this one is gone, without saving anything.

    On Linux the kernel does it, at once and also where no Python runs, e.g. in a collective operation or while stopped;
    elsewhere, or if the parent has gone before this call, a thread does.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGKILL))
