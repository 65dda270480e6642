"""What is said of a process that was killed, and what Linux counts of memory in control groups of both versions."""

import signal
from pathlib import Path

import pytest

from calm_core.telemetry import processes
from calm_core.telemetry.processes import killed_by, machine_bytes, machine_cores, oom_kills, room_for_processes


@pytest.fixture(params=["a container's own", "a service's", "of version 1", "of version 1, in a container"])
def group(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The files in which the limit of memory and the count of killed processes stand."""
    own, folder, limit, count = {
        "a container's own": ("0::/", "", "memory.max", "memory.events"),
        "a service's": ("0::/system.slice/calm.service", "system.slice/calm.service", "memory.max", "memory.events"),
        "of version 1": (
            "5:cpu:/other\n4:memory:/jobs/1\n0::/",
            "memory/jobs/1",
            "memory.limit_in_bytes",
            "memory.oom_control",
        ),
        "of version 1, in a container": ("4:memory:/docker/1", "memory", "memory.limit_in_bytes", "memory.oom_control"),
    }[request.param]
    (tmp_path / "own").write_text(own + "\n")
    (tmp_path / "groups" / folder).mkdir(parents=True)
    monkeypatch.setattr(processes, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(processes, "_GROUPS", tmp_path / "groups")
    return tmp_path / "groups" / folder / limit, tmp_path / "groups" / folder / count


def test_memory_is_what_the_group_may_use(group: tuple[Path, Path]) -> None:
    limit, _ = group
    limit.write_text("max\n")
    whole = machine_bytes()
    limit.write_text("12345678\n")
    assert machine_bytes() == 12345678 < whole


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/jobs/1", {"jobs/cpu.max": "50000 100000", "jobs/1/cpu.max": "max 100000"}, 1),
        (
            "3:cpu,cpuacct:/jobs",
            {f"cpu,cpuacct/jobs/cpu.cfs_{n}_us": v for n, v in (("quota", "9"), ("period", "10"))},
            1,
        ),
        ("3:cpu:/", {f"cpu/cpu.cfs_{n}_us": v for n, v in (("quota", "-1"), ("period", "100000"))}, 64),
        ("0::/", {}, 64),
    ],
)
def test_cores_are_those_that_the_process_may_use(
    own: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(own + "\n")
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content + "\n")
    monkeypatch.setattr(processes, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(processes, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {*range(64)})
    assert machine_cores() == cores
    assert room_for_processes(1) == cores
    assert room_for_processes(machine_bytes() // 3) == min(cores, 3)
    monkeypatch.setenv("CALM_PROCESSES", "2")
    assert room_for_processes(1) == min(cores, 2)


def test_what_the_kernel_has_killed_is_counted(group: tuple[Path, Path]) -> None:
    _, count = group
    assert oom_kills() == 0
    count.write_text("low 1\noom 7\noom_kill 3\n")
    assert oom_kills() == 3


def test_a_machine_without_groups_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_OWN_GROUPS", tmp_path / "none")
    assert oom_kills() == 0


def test_a_guess_is_told_as_one() -> None:
    told = killed_by(-signal.SIGKILL), killed_by(128 + signal.SIGKILL, for_memory=True), killed_by(-signal.SIGSEGV)
    assert told[0].startswith("was killed (SIGKILL), perhaps for want of memory: this machine has ")
    assert told[1].startswith("was killed by the kernel for want of memory: this machine has ")
    assert told[2] == "was ended by SIGSEGV"
    assert killed_by(1) == ""
