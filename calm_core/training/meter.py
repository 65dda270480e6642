"""How fast a training goes, what its steps wait for, and how much of the hardware it uses."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from calm_core.config import TrainingConfig
from calm_core.telemetry.processes import peak_bytes
from calm_core.training.distributed import all_reduce_sum
from calm_core.training.energy import EnergyMeter
from calm_core.training.engine import precision_of

_PEAK_TFLOPS = {
    "A100": 312.0,
    "B200": 2250.0,
    "H100": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H200": 989.0,
    "H200 NVL": 835.0,
    "L4": 121.0,
    "L40S": 362.0,
}
"""Dense bf16 products of one GPU in 1e12 FLOP/s, by words of its name. From NVIDIA's data sheets, which for all but the
A100 print the double, with sparsity."""


def peak_tflops(config: TrainingConfig, device: torch.device) -> float:
    """What utilisation is measured against: 1e12 FLOP/s of one rank, 0 where nobody has said and it is not known."""
    if config.peak_tflops is not None:
        return config.peak_tflops
    if device.type != "cuda" or precision_of(config) == "fp32":
        return 0.0
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(gpu: str) -> float:
    """Dense bf16 products of a GPU by its name, 1e12 FLOP/s; 0 where it is not known, as of a part of one (MIG)."""
    words = set(gpu.replace("-", " ").split())
    known = [name for name in _PEAK_TFLOPS if words.issuperset(name.split()) and "MIG" not in words]
    return _PEAK_TFLOPS[max(known, key=len)] if known else 0.0


def most_memory(device: torch.device) -> int:
    """Bytes that this rank has had at most: allocated on its GPU, or its resident set on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


@dataclass(frozen=True)
class Peak:
    """What model FLOPs utilisation is measured against.

    Attributes:
        tflops: 1e12 FLOP/s of one rank.
        tokens_per_second: On which all ranks together could train if they did nothing but the model's operations.
    """

    tflops: float
    tokens_per_second: float


@dataclass(frozen=True)
class Spent:
    """What a training has taken, over all its starts.

    Attributes:
        seconds: Wall time.
        accelerator_seconds: Wall time of each rank, added up; None where a checkpoint of earlier code does not tell.
        energy_joules: Of the devices of all ranks; None where some of it was not measured.
    """

    seconds: float = 0.0
    accelerator_seconds: float | None = 0.0
    energy_joules: float | None = 0.0


class CostMeter:
    """What a training takes. What was done after the last checkpoint before it was interrupted is not known any more.

    Args:
        energy: Of this rank.

    Attributes:
        before: What it had taken before this start.
    """

    def __init__(self, energy: EnergyMeter) -> None:
        self._energy = energy
        self._started = time.monotonic()
        self.before = Spent()

    def spent(self, device: torch.device) -> Spent:
        """So far; every rank calls it, and gets the same but for its own clock's wall time."""
        seconds, joules = time.monotonic() - self._started, self._energy.joules()
        own = torch.tensor([seconds, math.nan if joules is None else joules], dtype=torch.float64)
        of_ranks, energy = all_reduce_sum(own, device).tolist()
        return Spent(
            seconds=self.before.seconds + seconds,
            accelerator_seconds=_sum(self.before.accelerator_seconds, of_ranks),
            energy_joules=_sum(self.before.energy_joules, None if math.isnan(energy) else energy),
        )


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second


class SpeedMeter:
    """Rates and waits since this process began to train; what was done before it resumed does not count.

    Args:
        first_step: Steps done before.
        steps: Steps in all.
        tokens_per_step: Tokens of a global batch.
        peak: Of the hardware, None where it is not known.

    Attributes:
        eta: Seconds left, estimated.
        loader_wait_seconds: For which this rank has waited for batches after the first one.
        speed: What the last point tells, by name (see `point`).
    """

    def __init__(self, first_step: int, steps: int, tokens_per_step: int, peak: Peak | None = None) -> None:
        self._first_step, self._steps, self._tokens_per_step = first_step, steps, tokens_per_step
        self._peak = peak
        self._started = time.monotonic()
        self._step = first_step
        self._aside: dict[str, float] = {}
        self._last = first_step, 0.0  # of the last point: steps done, seconds that steps had taken
        self._filling = 0.0
        self.loader_wait_seconds = 0.0
        self.eta = 0.0
        self.speed: dict[str, float] = {}

    def update(self, step: int, waited: float) -> None:
        """Take in that a step is done.

        Args:
            step: Steps done.
            waited: Seconds that this rank has waited for batches in all.
        """
        if step == self._first_step + 1:
            self._filling = waited  # the first batch has to be waited for
        self.loader_wait_seconds = waited - self._filling
        self._step = step
        self.eta = self._elapsed / (step - self._first_step) * (self._steps - step)

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Count what is done in this block under a name, rather than to the steps."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._aside[name] = self._aside.get(name, 0.0) + time.monotonic() - started

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    @property
    def _in_steps(self) -> float:
        return self._elapsed - sum(self._aside.values())

    def point(self, largest: Mapping[str, float]) -> dict[str, float]:
        """The figures of a point, by name.

        Since this process began to train: tokens_per_second, by the clock; what `aside` has counted; `largest`. Since
        the last point, in its steps alone: recent_tokens_per_second and, where the peak is known,
        model_flops_utilisation (of peak_tflops).

        Args:
            largest: Figures of ranks by name, each the largest over all of them.
        """
        step, seconds = self._last
        recent = (self._step - step) * self._tokens_per_step / max(self._in_steps - seconds, 1e-9)
        self._last = self._step, self._in_steps
        done = (self._step - self._first_step) * self._tokens_per_step
        self.speed = {
            "tokens_per_second": done / max(self._elapsed, 1e-9),
            "recent_tokens_per_second": recent,
            **self._utilisation(recent),
            **self._aside,
            **largest,
        }
        return self.speed

    @property
    def totals(self) -> dict[str, float]:
        """The figures of the last point, but utilisation is that of all steps since this process began to train."""
        done = (self._step - self._first_step) * self._tokens_per_step
        return self.speed | self._utilisation(done / max(self._in_steps, 1e-9))

    def _utilisation(self, tokens_per_second: float) -> dict[str, float]:
        if self._peak is None:
            return {}
        share = tokens_per_second / self._peak.tokens_per_second
        return {"model_flops_utilisation": share, "peak_tflops": self._peak.tflops}
