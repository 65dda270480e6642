"""Two machines that train together, rehearsed in two network namespaces: one is lost, both start again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts

MINI = Path(__file__).parents[1] / "pipelines" / "mini.yaml"
_SECONDS = 300  # after which it counts as a hang
SETTINGS = (
    "steps=300", "micro_batch_size=2", "checkpoint_interval=50", "log_interval=50", "validation_interval=300",
)  # fmt: skip


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Names of two namespaces whose only way out is a cable between them: 10.77.0.1 and 10.77.0.2."""
    names = f"calm-a-{os.getpid()}", f"calm-b-{os.getpid()}"
    with ExitStack() as stack:
        try:
            for name in names:
                _run("ip", "netns", "add", name)
                stack.callback(_run, "ip", "netns", "delete", name)
                own = Path("/etc/netns", name)  # what ip(8) shows there as /etc
                own.mkdir(parents=True)
                stack.callback(shutil.rmtree, own)
                (own / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # answers at once that it is not there
            _run("ip", "link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1])
            for number, name in enumerate(names, 1):
                _run("ip", "-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
                for device in ("cable", "lo"):
                    _run("ip", "-n", name, "link", "set", device, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            why = f"needs root and ip(8): {getattr(error, 'stderr', '') or error}"
            pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
        yield names
        for name in names:
            _kill_all(name)


def _kill_all(machine: str) -> None:
    """End whatever runs there, as a power cut does."""
    while pids := _run("ip", "netns", "pids", machine).split():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)


def _start(machines: tuple[str, str], dataset_uri: str, folder: Path) -> list["subprocess.Popen[str]"]:
    """The same command on both, each with what a cluster says of its place."""
    arguments = ["train", "autoencoder", "--profile", str(MINI), "--dataset", dataset_uri, "--output", "out"]
    for setting in SETTINGS:
        arguments += ["--set", f"autoencoder.{setting}"]
    program = [sys.executable, "-c", "from calm_cli.start import main; main()", *arguments]
    shared = {
        "CALM_HOME": str(folder / "home"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "GLOO_SOCKET_IFNAME": "cable",
        "PET_NNODES": "2",
        "PET_MASTER_ADDR": "10.77.0.1",
        "PET_MASTER_PORT": "29500",
    }
    nodes: list[subprocess.Popen[str]] = []
    before = _starts(folder)
    for rank, machine in enumerate(machines):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CALM_", "MLFLOW_"))}
        nodes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", machine, *program],
                cwd=folder,
                env=environment | shared | {"PET_NODE_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        # Processes of both are seen on this machine: before the first one has the lock, the other would be in its way.
        while rank == 0 and _starts(folder) == before:
            assert nodes[0].poll() is None, nodes[0].communicate()
            time.sleep(0.05)
    return nodes


def _starts(folder: Path) -> int:
    """How often ranks have been started on the first machine."""
    logs = [log for log in folder.glob("home/checkpoints/*.log") if ".node" not in log.name]
    return sum(log.read_text().count(" launcher: start of ") for log in logs)


def _finished(nodes: list["subprocess.Popen[str]"]) -> list[str]:
    """What each has printed to standard error, once both have ended well."""
    until = time.monotonic() + _SECONDS
    while None in (codes := [node.poll() for node in nodes]):
        assert not any(codes) and time.monotonic() < until, [node.communicate() for node in nodes if node.poll()]
        time.sleep(0.1)
    assert codes == [0, 0]
    return [node.communicate()[1] for node in nodes]


@pytest.mark.timeout(900)  # three starts of two machines, on one
def test_a_machine_is_lost_and_both_go_on_bit_for_bit(
    machines: tuple[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    """The first one, which also writes the checkpoints' manifests and keeps the record."""
    lost = 0
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    _, error = _finished(_start(machines, dataset_uri, undisturbed))
    assert error.splitlines()[-1] == "node 1 of 2 has done its part; node 0 tells what has been trained"

    nodes = _start(machines, dataset_uri, disturbed)
    while not list(disturbed.glob("home/checkpoints/*/step-*/manifest.json")):
        assert [node.poll() for node in nodes] == [None, None], [node.communicate() for node in nodes]
        time.sleep(0.02)
    _kill_all(machines[lost])
    _, error = nodes[1 - lost].communicate(timeout=_SECONDS)
    nodes[lost].communicate()
    assert nodes[1 - lost].returncode == 1
    line = error.splitlines()[-1]
    assert f"train-autoencoder: the connection to a rank at 10.77.0.{lost + 1} was lost: " in line
    assert "run the same command again, on every node, to continue from the last checkpoint" in line
    assert not (disturbed / "out" / "manifest.json").exists()

    _finished(_start(machines, dataset_uri, disturbed))
    first, second = (Artifact(str(one / "out"), AutoencoderFacts) for one in (undisturbed, disturbed))
    assert first.read("weights.safetensors") == second.read("weights.safetensors")


def test_one_machine_trains_that_does_not_know_its_own_name(
    machines: tuple[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    """As a container without a network: torch would look for the ranks at that name, for ten minutes."""
    program = ["train", "autoencoder", "--profile", str(MINI), "--dataset", dataset_uri, "--output", "out"]
    program = [sys.executable, "-c", "from calm_cli.start import main; main()", *program]
    nameless = ["unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$@"', "sh", *program]
    subprocess.run(
        ["ip", "netns", "exec", machines[0], *nameless],
        cwd=tmp_path,
        env=os.environ | {"CALM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=_SECONDS / 2,
        check=True,
    )
    Artifact(str(tmp_path / "out"), AutoencoderFacts).check_files()
