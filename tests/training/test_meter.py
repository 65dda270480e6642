"""Rates, waits and utilisation, by a clock that the test moves."""

from pathlib import Path

import pytest
import torch

from calm_core.config import TrainingConfig
from calm_core.training import meter as meter_module
from calm_core.training.meter import Peak, SpeedMeter, most_memory, peak_of, peak_tflops

CPU = torch.device("cpu")


class Clock:
    """Stands still but for what the test lets pass."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


def steps(meter: SpeedMeter, clock: Clock, first: int, last: int, seconds: float, waited: float = 0.0) -> None:
    for step in range(first, last + 1):
        clock.now += seconds
        meter.update(step, waited)


def test_a_recent_rate_is_of_the_steps_since_the_last_point(clock: Clock) -> None:
    meter = SpeedMeter(first_step=0, steps=20, tokens_per_step=100)
    steps(meter, clock, 1, 10, seconds=2)
    first = meter.point({})
    assert first["tokens_per_second"] == first["recent_tokens_per_second"] == 50
    assert meter.eta == 20
    steps(meter, clock, 11, 20, seconds=1)
    second = meter.point({})
    assert second["recent_tokens_per_second"] == 100
    assert second["tokens_per_second"] == pytest.approx(2000 / 30)


def test_what_is_done_beside_the_steps_slows_the_whole_and_not_the_steps(clock: Clock) -> None:
    meter = SpeedMeter(first_step=5, steps=10, tokens_per_step=100)
    steps(meter, clock, 6, 7, seconds=1)
    with meter.aside("validation_seconds"):
        clock.now += 8
    point = meter.point({})
    assert point == {"tokens_per_second": 20, "recent_tokens_per_second": 100, "validation_seconds": 8}


def test_utilisation_is_a_share_of_the_stated_peak_lately_and_in_all(clock: Clock) -> None:
    """Two ranks of 3 TFLOP/s and 2e9 FLOPs a token: 3,000 tokens/s at most."""
    peak = Peak(tflops=3.0, tokens_per_second=2 * 3e12 / 2e9)
    meter = SpeedMeter(first_step=0, steps=3, tokens_per_step=1500, peak=peak)
    steps(meter, clock, 1, 1, seconds=1)
    assert meter.point({})["model_flops_utilisation"] == 0.5
    steps(meter, clock, 2, 3, seconds=2)
    assert meter.point({}) | {"peak_tflops": 3.0, "model_flops_utilisation": 0.25} == meter.speed
    assert meter.totals["model_flops_utilisation"] == pytest.approx(0.3)


def test_nothing_is_said_of_utilisation_where_no_peak_is_known(clock: Clock) -> None:
    meter = SpeedMeter(first_step=0, steps=1, tokens_per_step=1)
    steps(meter, clock, 1, 1, seconds=1)
    assert not {"model_flops_utilisation", "peak_tflops"} & {*meter.point({}), *meter.totals}


def test_the_first_batch_has_to_be_waited_for(clock: Clock) -> None:
    meter = SpeedMeter(first_step=3, steps=9, tokens_per_step=1)
    meter_waits = []
    for step, waited in ((4, 2.0), (5, 2.0), (6, 2.5)):
        steps(meter, clock, step, step, seconds=1, waited=waited)
        meter_waits.append(meter.loader_wait_seconds)
    assert meter_waits == [0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("gpu", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 0),
        ("Tesla T4", 0),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name_or_not_at_all(gpu: str, tflops: float) -> None:
    assert peak_of(gpu) == tflops


def test_the_peak_of_a_cpu_is_what_somebody_says() -> None:
    assert peak_tflops(TrainingConfig(steps=100), CPU) == 0
    assert peak_tflops(TrainingConfig(steps=100, peak_tflops=0.25), CPU) == 0.25


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory to compare with from /proc")
def test_the_memory_of_a_rank_on_cpu_is_its_largest_resident_set() -> None:
    held = torch.ones(16 << 20)  # 64 MiB
    lines = Path("/proc/self/status").read_text().splitlines()
    now = 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    assert now >= held.nbytes
    assert now * 0.95 <= most_memory(CPU) < now + (64 << 30)
