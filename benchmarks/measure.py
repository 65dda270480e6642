"""Timing of alternatives side by side, in this process or each in one of its own, and the peak memory of one."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

Numbers = dict[str, float]


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


def metered(function: Callable[[], object]) -> Numbers:
    """Seconds of a call, and CPU-seconds of its process and of the children that it has waited for."""
    used, started = sum(os.times()[:4]), time.perf_counter()
    function()
    return {"seconds": time.perf_counter() - started, "cpu_seconds": sum(os.times()[:4]) - used}


def in_process(
    module: str, *arguments: object, python: Path | str = sys.executable, environment: Mapping[str, str] | None = None
) -> Numbers:
    """Run a module in a process of its own; returns the numbers that its last line holds as JSON."""
    command = [str(python), "-m", module, *map(str, arguments)]
    variables = os.environ | (environment or {})
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=variables)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    numbers: Numbers = json.loads(done.stdout.splitlines()[-1])
    return numbers


def in_turns(alternatives: Mapping[str, Callable[[], Numbers]], repeats: int) -> dict[str, Numbers]:
    """Median of each number of each alternative; they take turns."""
    runs = [{name: function() for name, function in alternatives.items()} for _ in range(repeats)]
    return {
        name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in alternatives
    }


def compared(what: str, seconds: Mapping[str, float], target: float = 0.0) -> Row:
    """A row of two alternatives, the reference first."""
    reference, ours = seconds.values()
    return Row(what, f"{1000 * reference:,.1f} ms", f"{1000 * ours:,.1f} ms", reference / ours, target)


def peak_bytes(function: Callable[[], object]) -> int:
    """How much more memory than before a call needs at its worst moment; Linux only."""
    function()  # what is loaded or allocated once is not the call's
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest memory so far
    before = memory("VmRSS")
    function()
    return memory("VmHWM") - before


def memory(field: str) -> int:
    """A field of this process's memory in bytes, VmRSS now or VmHWM at most; Linux only."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
