"""Energy and accelerator seconds: counters against numbers by hand, and trainings that are interrupted and go on."""

import ctypes
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from calm_core.errors import Interrupted
from calm_core.store.artifact import MANIFEST_NAME, Artifact, digest_of
from calm_core.store.facts import AutoencoderFacts, CheckpointFacts
from calm_core.training import energy
from calm_core.training.energy import EnergyMeter, NvmlDevice, RaplZone, energy_meter, rapl_zones
from calm_core.training.launcher import Ending
from calm_core.training.stage import train
from tests.training.faulty_ranks import ASKED_TO_STOP, Fault, ForkedLauncher, prepare_rank, run_forked
from tests.training.test_stages import autoencoder_config

CPU = torch.device("cpu")
RANGE = 262_143_328_850  # microjoules, as many processors have it: 20 minutes at 200 W


def zone(powercap: Path, folder: str, name: str, microjoules: int = 0) -> Path:
    """A zone as Linux shows it; returns its counter."""
    place = powercap / folder
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (place / "energy_uj").write_text(f"{microjoules}\n")
    return place / "energy_uj"


def add(counter: Path, microjoules: int) -> None:
    """Let a counter go on; at its range it begins anew."""
    counter.write_text(f"{(int(counter.read_text()) + microjoules) % RANGE}\n")


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the machine's."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    return tmp_path / "powercap"


def test_a_counter_that_begins_anew_loses_nothing(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1_000_000)
    processor = RaplZone(counter.parent)
    assert processor.joules() == 0
    for joules in (0.5, 2.5, 200_000, 200_000):  # twice around, each time between two reads
        before = processor.joules()
        add(counter, int(1e6 * joules))
        assert processor.joules() - before == pytest.approx(joules)


def test_processors_and_their_memory_count_and_nothing_twice(powercap: Path) -> None:
    """Two sockets with memory; cores, graphics, the platform and the second view of a socket are parts or wholes."""
    zone(powercap, "intel-rapl", "not a zone")
    counting = [
        zone(powercap, "intel-rapl:0", "package-0", 7),
        zone(powercap, "intel-rapl:0:1", "dram"),
        zone(powercap, "intel-rapl:1", "package-1-die-0"),
        zone(powercap, "intel-rapl:1:1", "dram"),
    ]
    parts = [("intel-rapl:0:0", "core"), ("intel-rapl:0:2", "uncore"), ("intel-rapl:2", "psys")]
    others = [zone(powercap, folder, name) for folder, name in [*parts, ("intel-rapl-mmio:0", "package-0")]]
    meter = energy_meter(CPU, local_rank=0)
    for power, counter in enumerate(counting + others):
        add(counter, 1_000_000 * 10**power)
    assert meter.joules() == pytest.approx(1111)


def test_the_machine_is_counted_by_its_first_rank_alone(powercap: Path) -> None:
    counter = zone(powercap, "intel-rapl:0", "package-0")
    meters = [energy_meter(CPU, local_rank) for local_rank in range(3)]
    add(counter, 4_000_000)
    assert [meter.joules() for meter in meters] == [4, 0, 0]


def test_nothing_is_said_where_nothing_counts(powercap: Path) -> None:
    assert energy_meter(CPU, local_rank=0).joules() is None  # no powercap at all
    zone(powercap, "intel-rapl:0:0", "core")
    assert energy_meter(CPU, local_rank=0).joules() is None  # a part of a processor


def test_a_counter_that_may_not_be_read_leaves_all_unsaid(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root, which may run these tests, is refused nothing by a file's mode."""
    zone(powercap, "intel-rapl:0", "package-0")
    refused, read_text = zone(powercap, "intel-rapl:1", "package-1"), Path.read_text

    def read(path: Path) -> str:
        if path == refused:
            raise PermissionError(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", read)
    with pytest.raises(PermissionError):
        rapl_zones(powercap)
    assert energy_meter(CPU, local_rank=0).joules() is None


@pytest.mark.parametrize(("file", "content"), [("energy_uj", None), ("energy_uj", "?"), ("max_energy_range_uj", "0")])
def test_a_broken_zone_leaves_all_unsaid(powercap: Path, file: str, content: str | None) -> None:
    zone(powercap, "intel-rapl:0", "package-0")
    broken = zone(powercap, "intel-rapl:1", "package-1").with_name(file)
    broken.unlink()
    if content:
        broken.write_text(content)
    assert energy_meter(CPU, local_rank=0).joules() is None


def test_a_counter_that_is_lost_meanwhile_leaves_all_unsaid_from_then_on(powercap: Path) -> None:
    counter = zone(powercap, "intel-rapl:0", "package-0")
    meter = energy_meter(CPU, local_rank=0)
    assert meter.joules() == 0
    counter.rename(counter.with_name("away"))
    assert meter.joules() is None
    counter.with_name("away").rename(counter)
    assert meter.joules() is None


def test_counters_are_read_between_whoever_asks(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that begins anew twice meanwhile would lose that."""
    counter = zone(powercap, "intel-rapl:0", "package-0")
    reads: list[float] = []
    joules = EnergyMeter.joules

    class Moments:
        """Three of them pass, and then the block ends."""

        def wait(self, seconds: float) -> bool:
            add(counter, int(0.6 * RANGE))
            return len(reads) == 3

        def set(self) -> None: ...

    monkeypatch.setattr(EnergyMeter, "joules", lambda meter: reads.append(joules(meter) or 0))
    meter = energy_meter(CPU, local_rank=0)
    meter._ended = Moments()  # type: ignore[assignment]
    meter._keep_reading()
    assert reads == pytest.approx([0.6e-6 * RANGE * times for times in (1, 2, 3)])


class MadeUpNvml:
    """The driver's three functions; a device counts 250 J with each look at it.

    Args:
        answers: What a function answers that does not work, by its name.
    """

    def __init__(self, **answers: int) -> None:
        self.answers = answers
        self.millijoules = 2**33  # more than 32 bits

    def nvmlInit_v2(self) -> int:
        return self.answers.get("init", 0)

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        if uuid != b"GPU-12-ab":
            return 6  # NVML_ERROR_NOT_FOUND
        handle._obj.value = 42
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: ctypes.c_void_p, millijoules: Any) -> int:
        assert handle.value == 42
        self.millijoules += 250_000
        millijoules._obj.value = self.millijoules
        return self.answers.get("energy", 0)


def test_a_gpu_counts_in_millijoules() -> None:
    device = NvmlDevice("12-ab", MadeUpNvml())  # type: ignore[arg-type]
    assert [device.joules(), device.joules()] == [250, 500]


@pytest.mark.parametrize(
    ("uuid", "answers"), [("of a part", {}), ("12-ab", {"init": 9}), ("12-ab", {"energy": 3})], ids=str
)
def test_a_gpu_that_does_not_count_is_an_error(uuid: str, answers: dict[str, int]) -> None:
    with pytest.raises(OSError, match="NVML answers"):
        NvmlDevice(uuid, MadeUpNvml(**answers))  # type: ignore[arg-type]


class MeasuredRanks(ForkedLauncher):
    """Ranks on a machine with these counters."""

    def __init__(self, powercap: Path, faults: dict[int, Fault]) -> None:
        super().__init__(faults)
        self._powercap = powercap

    def run(self, spec_uri: str, processes: int | None, log: str = "") -> Ending:
        return Ending(run_forked(processes or 1, _train_measured, spec_uri, self._powercap, self._faults))


def _train_measured(spec_uri: str, powercap: Path, faults_of_last: dict[int, Fault]) -> None:
    from calm_core.training import worker

    energy.POWERCAP = powercap
    prepare_rank(faults_of_last if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1 else {})
    try:
        worker.main(spec_uri)
    except Interrupted as error:
        raise SystemExit(error.exit_code) from None


class Measured:
    """A training that takes 5 J at each start, and is stopped at the first one."""

    def __init__(self, dataset_uri: str, folder: Path) -> None:
        self._dataset_uri, self._folder = dataset_uri, folder
        self.powercap = folder / "powercap"
        self._counter = zone(self.powercap, "intel-rapl:0", "package-0", RANGE - 7_000_000)

    def start(self, processes: int, faults: dict[int, Fault]) -> Artifact[AutoencoderFacts]:
        launcher = MeasuredRanks(self.powercap, {2: partial(add, self._counter, 5_000_000)} | faults)
        config, folder = autoencoder_config(processes=processes), self._folder
        output, checkpoints = str(folder / "out"), str(folder / "checkpoints")
        return train(  # type: ignore[return-value]
            config, self._dataset_uri, output, seed=0, checkpoint_root=checkpoints, launcher=launcher
        )

    def stopped(self, processes: int) -> tuple[Path, CheckpointFacts]:
        """The checkpoint of the first start."""
        with pytest.raises(Interrupted):
            self.start(processes, {3: ASKED_TO_STOP})
        (checkpoint,) = (self._folder / "checkpoints").glob("*/step-*")
        return checkpoint, Artifact(str(checkpoint), CheckpointFacts).facts


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_training_that_goes_on_with_other_ranks_adds_up(
    dataset_uri: str, tmp_path: Path, first: int, then: int
) -> None:
    """Each rank's wall time counts, and a machine's energy once."""
    training = Measured(dataset_uri, tmp_path)
    _, before = training.stopped(first)
    assert before.energy_joules == pytest.approx(5)
    assert before.accelerator_seconds == pytest.approx(first * before.seconds, rel=0.1)  # they begin almost together
    facts = training.start(then, {}).facts
    assert facts.energy_joules == pytest.approx(10)
    assert facts.accelerator_seconds is not None and before.accelerator_seconds is not None
    accelerators = (facts.accelerator_seconds - before.accelerator_seconds) / (facts.seconds - before.seconds)
    assert accelerators == pytest.approx(then, rel=0.1)


def test_of_a_checkpoint_that_does_not_tell_nothing_is_guessed(dataset_uri: str, tmp_path: Path) -> None:
    """Of earlier code; the seconds of its training are known."""
    training = Measured(dataset_uri, tmp_path)
    checkpoint, before = training.stopped(1)
    manifest = json.loads((checkpoint / MANIFEST_NAME).read_text())
    del manifest["checksum"], manifest["timings"]["accelerator_seconds"], manifest["timings"]["energy_joules"]
    manifest["schema_version"] = 2
    (checkpoint / MANIFEST_NAME).write_text(json.dumps(manifest | {"checksum": digest_of(manifest)}))
    facts = training.start(1, {}).facts
    assert (facts.accelerator_seconds, facts.energy_joules) == (None, None)
    assert facts.seconds > before.seconds
