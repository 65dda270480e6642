"""Processes that share the work of preparing on one machine, or in one pod."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import starmap
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import current_thread, main_thread
from types import TracebackType
from typing import Any, Self, TypeVar

from calm_core.data.preparing import progress
from calm_core.errors import CalmError, Stopped
from calm_core.telemetry.processes import PARENT_VARIABLE, SIGNALLED, die_with_parent, killed_by, room_for_processes

_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # they come to all its processes; the first one ends the others
_SECONDS = 5.0  # for a process to leave no file half-written
_WORKER_BYTES = 1 << 30

ResultT = TypeVar("ResultT")


def most_workers() -> int:
    """How many processes this machine or container has room for."""
    return room_for_processes(_WORKER_BYTES)


class Workers:
    """Processes that work while the block lasts; with one, or for a single piece of work, it is this process.

    If the block fails they end at once, and so they do when this process is gone.

    Args:
        number: How many, at most.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._pool: ProcessPoolExecutor | None = None
        self._others = {*active_children()}
        self._processes: set[BaseProcess] = set()

    def map(self, do: Callable[..., ResultT], *arguments: Iterable[Any]) -> Iterator[ResultT]:
        """Results in the order of the arguments, each once it is there.

        Raises:
            CalmError: A process was killed.
        """
        calls = list(zip(*arguments, strict=True))
        if self._number == 1 or len(calls) < 2:
            yield from starmap(do, calls)
            return
        with _without_the_terminal():
            self._pool = self._pool or self._begun()
            results = self._pool.map(do, *zip(*calls, strict=True))
            self._processes |= {*active_children()} - self._others
        try:
            yield from results
        except BrokenProcessPool:
            raise self._killed() from None

    def _begun(self) -> ProcessPoolExecutor:
        # A fork would inherit the threads of Arrow and of the object store's library in an unknown state.
        context = get_context("spawn")
        counts = progress.counts = context.Array("d", [progress.counts[i] for i in range(len(progress.counts))])
        return ProcessPoolExecutor(self._number, context, _begin, (counts,))

    def _killed(self) -> CalmError:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)  # it has asked the others to end
        codes = {process.exitcode or 0 for process in self._processes} - {-signal.SIGTERM, SIGNALLED + signal.SIGTERM}
        how = next(filter(None, map(killed_by, codes)), "ended")
        return CalmError(
            f"a preparing process {how}; run the same command again (with fewer workers, or more memory): what is "
            "finished is kept",
            can_pass=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Stopped):
            error.again = "run the same command again to go on: what is finished is kept"
        if self._pool is None:
            return
        if error:
            _end(self._processes)
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def _without_the_terminal() -> Iterator[None]:
    """Processes that start in the block never see what comes from the terminal; what comes here meanwhile, waits."""
    came: list[int] = []
    # Blocked in this thread a signal still comes by another one, and its handler would leave a process half-started.
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (*_OF_THE_TERMINAL, signal.SIGTERM)
        if current_thread() is main_thread() and callable(signal.getsignal(number))
    }
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for waiting in came:
            signal.raise_signal(waiting)


def _end(processes: Iterable[BaseProcess]) -> None:
    """Ask processes to end, and kill those that take their time."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _SECONDS
    for process in processes:
        wait([process.sentinel], max(0.0, until - time.monotonic()))
        process.kill()


def _begin(counts: "progress.Counts") -> None:
    """Begin a process of the pool: it ends with its parent; asked to end, it leaves no file half-written."""
    for number in _OF_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(SIGNALLED + number))
    if parent := parent_process():  # it may be gone by now
        os.environ[PARENT_VARIABLE] = str(parent.pid)
    die_with_parent()
    progress.counts = counts
