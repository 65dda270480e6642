"""Timing of alternatives side by side, and the peak memory of one."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What is compared, and at which size.
        reference, ours: The two measurements, with their unit.
        ratio: How many times better ours is.
        target: The least ratio that was asked for; 0 where none was.
    """

    what: str
    reference: str
    ours: str
    ratio: float
    target: float = 0.0

    def markdown(self) -> str:
        wanted = "" if not self.target else f"{self.target:g}" + ("" if self.ratio >= self.target else " **missed**")
        return f"| {self.what} | {self.reference} | {self.ours} | {self.ratio:.2f} | {wanted} |"


def side_by_side(alternatives: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each alternative; they take turns, so that a slow moment of the machine meets them all."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for function in alternatives.values():
        function()  # the first call allocates
    for _ in range(repeats):
        for name, function in alternatives.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def compared(what: str, seconds: Mapping[str, float], target: float = 0.0) -> Row:
    """A row of two alternatives, the reference first."""
    reference, ours = seconds.values()
    return Row(what, f"{1000 * reference:,.1f} ms", f"{1000 * ours:,.1f} ms", reference / ours, target)


def peak_bytes(function: Callable[[], object]) -> int:
    """How much more memory than before a call needs at its worst moment; Linux only."""
    function()  # what is loaded or allocated once is not the call's
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest memory so far
    before = _memory("VmRSS")
    function()
    return _memory("VmHWM") - before


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
