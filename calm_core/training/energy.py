"""Energy that a training takes, where the hardware counts it; nothing is estimated.

On NVIDIA's GPUs each rank reads its device's counter. On CPU the first rank of a machine reads those of its processors,
for the others too: they count the whole machine, whatever runs there.
"""

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

POWERCAP = Path("/sys/class/powercap")
_RAPL = "intel-rapl:*"
"""Zones of Linux's powercap that RAPL counts, AMD's too; `intel-rapl-mmio` counts the same processors again."""
_NVML = "libnvidia-ml.so.1"
_READ_SECONDS = 30.0
"""RAPL's counters begin anew after a few minutes under load: between two reads they must not do so twice."""


class Counter(Protocol):
    """Counts the energy of a device."""

    def joules(self) -> float:
        """Since it was made.

        Raises:
            OSError, ValueError: It cannot be read.
        """


class RaplZone:
    """A processor, or its memory, by RAPL (https://docs.kernel.org/power/powercap/powercap.html).

    Args:
        folder: Of the zone.

    Raises:
        OSError, ValueError: It cannot be read; on many machines root alone may.
    """

    def __init__(self, folder: Path) -> None:
        self._counter = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        if self._range <= 0:
            raise ValueError(f"{folder}: a range of {self._range}")
        self._last, self._counted = self._read(), 0

    def joules(self) -> float:
        """Since it was made; at its range the counter begins anew, at most once since the last call."""
        now = self._read()
        self._counted += (now - self._last) % self._range
        self._last = now
        return self._counted / 1e6

    def _read(self) -> int:
        return int(self._counter.read_text())


class NvmlDevice:
    """A GPU, by NVML (nvmlDeviceGetTotalEnergyConsumption: millijoules since its driver was loaded).

    Args:
        uuid: As torch tells it. That of a part of a GPU (MIG) is no device of NVML's.
        nvml: The driver's library.

    Raises:
        OSError: The GPU does not count; those before Volta do not.
    """

    def __init__(self, uuid: str, nvml: ctypes.CDLL) -> None:
        self._nvml = nvml
        self._handle = ctypes.c_void_p()
        _require(nvml.nvmlInit_v2())
        _require(nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(self._handle)))
        self._first = self._read()

    def joules(self) -> float:
        """Since it was made."""
        return (self._read() - self._first) / 1e3

    def _read(self) -> int:
        millijoules = ctypes.c_ulonglong()
        _require(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules)))
        return millijoules.value


def _require(code: int) -> None:
    if code:
        raise OSError(f"NVML answers {code}")


class EnergyMeter:
    """Energy of the devices that a rank counts, since it was made.

    As a context it reads again and again, so that no counter begins anew unseen.

    Args:
        counters: Of the devices; none where another rank counts for this one, None where nothing does.
    """

    def __init__(self, counters: Sequence[Counter] | None) -> None:
        self._counters = counters
        self._reading = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        if self._counters:
            threading.Thread(target=self._keep_reading, daemon=True).start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _keep_reading(self) -> None:
        while not self._ended.wait(_READ_SECONDS):
            self.joules()

    def joules(self) -> float | None:
        """Since it was made; None where some of it was not measured."""
        with self._reading:
            try:
                return None if self._counters is None else sum(counter.joules() for counter in self._counters)
            except (OSError, ValueError):
                self._counters = None  # what comes later would be a part
                return None


def energy_meter(device: torch.device, local_rank: int) -> EnergyMeter:
    """What counts the energy of a rank.

    Args:
        device: Where it computes.
        local_rank: Its number on its machine.
    """
    try:
        if device.type == "cuda":
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            return EnergyMeter([NvmlDevice(uuid, ctypes.CDLL(_NVML))])
        if local_rank:
            return EnergyMeter([])
        return EnergyMeter(rapl_zones(POWERCAP) or None)
    except (OSError, ValueError):
        return EnergyMeter(None)


def rapl_zones(powercap: Path) -> list[RaplZone]:
    """The processors of this machine and, where that is counted apart, their memory; none where nothing counts them.

    Of a processor's other zones (its cores, its graphics) the energy is part of its own.

    Args:
        powercap: Folder with a folder for each zone.

    Raises:
        OSError, ValueError: One of them cannot be read: the others would be a part.
    """
    named = {folder: (folder / "name").read_text().strip() for folder in sorted(powercap.glob(_RAPL))}
    return [RaplZone(folder) for folder, name in named.items() if name.startswith("package") or name == "dram"]
