"""A trace of some steps of a training, to see where their time goes."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from calm_core.errors import first_line
from calm_core.store import storage

_TRACE, _TABLE = ".trace.json.gz", ".operators.txt"
_OPERATORS = 30  # of the table, the most expensive ones


class StepProfiler:
    """Traces the steps after step A up to step B with torch's profiler, on the rank that has one.

    When they are done, or training ends before, it writes a Chrome trace (for ui.perfetto.dev or chrome://tracing) and
    a table of the operators that took most time. Nothing that lies there is replaced. What cannot be written is told,
    and ends no training.

    Args:
        steps: A and B, counted from the first step of all; None to trace nothing.
        place: How the URIs of both files begin.
        tell: Shows one line to whoever watches.

    Attributes:
        trace_uri: Of the trace; empty before there is one.

    Example:
        >>> with StepProfiler((10, 12), "out/calm", print) as profiler:
        ...     for step in range(100):
        ...         profiler.begin_step(step)
        ...         train_step()
    """

    def __init__(self, steps: tuple[int, int] | None, place: str, tell: Callable[[str], object]) -> None:
        self._first, self._end = steps or (0, 0)
        self._place, self._tell = place, tell
        self._running: profile | None = None
        self._span: record_function | None = None
        self._traced = 0, 0
        self._is_over = steps is None
        self.trace_uri = ""

    def begin_step(self, done: int) -> None:
        """Say that the step after so many begins."""
        self._end_span()
        if self._is_over:
            return
        if done >= self._end:
            self._is_over = True
            if self._running is None:
                self._tell(f"no step is profiled: training goes on from step {done:,}, beyond {self._end:,}")
            else:
                self._finish()
        elif self._running is None and done >= self._first:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._running = profile(activities=activities)
            self._running.start()
            self._traced = done, done
        if self._running is not None:
            self._traced = self._traced[0], done + 1
            self._span = record_function(f"step {done + 1}")
            self._span.__enter__()

    def _end_span(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_span()
        if self._running is not None:
            self._finish()

    def _finish(self) -> None:
        assert self._running is not None
        done, self._running = self._running, None
        first, last = self._traced
        try:
            done.stop()
            place = _free(f"{self._place}.steps-{first + 1}-{last}")
            order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = done.key_averages().table(sort_by=order, row_limit=_OPERATORS)
            storage.write(place + _TABLE, table.encode())
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / f"trace{_TRACE}"
                done.export_chrome_trace(str(file))
                storage.copy(str(file), place + _TRACE)
        except Exception as error:  # whatever it was, training goes on
            self._tell(f"the trace of steps {first + 1:,} to {last:,} could not be written: {first_line(error)}")
            return
        self.trace_uri = place + _TRACE
        self._tell(f"trace of steps {first + 1:,} to {last:,}: {self.trace_uri}")


def _free(place: str) -> str:
    """This place, or with a number at its end, so that neither of its files is there."""
    number, free = 1, place
    while storage.exists(free + _TRACE) or storage.exists(free + _TABLE):
        number += 1
        free = f"{place}-{number}"
    return free
