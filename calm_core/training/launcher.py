"""How the ranks of a job are started: a launcher takes the place of a spec, and waits for the ranks' end."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from calm_core.errors import ConfigError, Stopped
from calm_core.telemetry.processes import PARENT_VARIABLE

WORKER = "calm_core.training.worker"
"""What every rank runs, with the URI of a spec as its one argument."""
_AGENT = "calm_core.training.agent"
_STANDARD_ERROR = 2


@dataclass(frozen=True)
class Ending:
    """How the ranks ended.

    Attributes:
        exit_code: 0 when all of them have finished, 75 when they were asked to stop; below 0 the signal that has ended
            the launcher's own process, above 128 that of a rank.
        message: What the first one that failed said, on one line; empty where it could not say.
    """

    exit_code: int
    message: str = ""


class Launcher(Protocol):
    """Starts ranks somewhere.

    Each runs WORKER under torch's elastic agent, which sets RANK, WORLD_SIZE, MASTER_ADDR and so on.
    """

    def world_size(self, processes: int | None) -> int:
        """How many ranks there will be, if the settings ask for this many on a node (None: as many as fit).

        Raises:
            ConfigError: So many do not fit.
        """
        ...

    def run(self, spec_uri: str, processes: int | None) -> Ending:
        """Start the ranks of a job and wait for them."""
        ...


@dataclass(frozen=True)
class Nodes:
    """Machines that share a job, with a rendezvous at an address that is known beforehand.

    The launcher runs on node 0. On each other one, torchrun is started with the same worker and spec:
    ``torchrun --nnodes=2 --node-rank=1 --master-addr=... --master-port=... -m calm_core.training.worker SPEC``.

    Attributes:
        count: Of the machines.
        address, port: Where node 0 is reached.
    """

    count: int
    address: str
    port: int


class TorchrunLauncher:
    """torchrun on this machine: one rank a GPU, or one on CPU; what it says goes to standard error.

    The first SIGTERM, SIGINT or SIGHUP is passed on, so that the ranks save a checkpoint before they end; Ctrl-C after
    that ends them as they are.

    Args:
        nodes: The machines that share the job; None for this one alone.
    """

    def __init__(self, nodes: Nodes | None = None) -> None:
        self._nodes = nodes

    def world_size(self, processes: int | None) -> int:
        """The ranks of all nodes, each of which is like this one."""
        import torch  # costs seconds: only where ranks are counted

        gpus = torch.cuda.device_count()
        if gpus and processes and processes > gpus:
            raise ConfigError(f"processes is {processes}, this machine has {gpus} GPUs; lower it")
        return (processes or gpus or 1) * (self._nodes.count if self._nodes else 1)

    def run(self, spec_uri: str, processes: int | None) -> Ending:
        """Run torchrun. Its error file holds what the first rank that failed has recorded.

        torch leaves folders where temporary files go, so for the ranks this is a folder of their own.
        """
        here = self.world_size(processes) // (self._nodes.count if self._nodes else 1)
        command = [sys.executable, "-m", _AGENT, *self._rendezvous(), f"--nproc-per-node={here}"]
        with tempfile.TemporaryDirectory(prefix="calm-training-", ignore_cleanup_errors=True) as folder:
            error_file = Path(folder) / "error.json"
            environment = _environment(here) | {
                "TORCHELASTIC_ERROR_FILE": str(error_file),
                "TMPDIR": folder,
                PARENT_VARIABLE: str(os.getpid()),
            }
            with (
                subprocess.Popen(
                    [*command, "-m", WORKER, spec_uri],
                    env=environment,
                    stdout=_STANDARD_ERROR,
                    process_group=0,  # Ctrl-C in a terminal comes from here alone, and once
                ) as process,
                _signals_passed_on(process),
            ):
                code = process.wait()
            return Ending(code, _recorded(error_file))

    def _rendezvous(self) -> list[str]:
        if self._nodes is None:
            return ["--standalone"]
        nodes = self._nodes
        address = [f"--master-addr={nodes.address}", f"--master-port={nodes.port}"]
        return [f"--nnodes={nodes.count}", "--node-rank=0", *address]


def _environment(processes: int) -> dict[str, str]:
    import torch

    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
    return environment if torch.cuda.is_available() else environment | {"DS_ACCELERATOR": "cpu"}


def _recorded(error_file: Path) -> str:
    """The message in an error file of torch elastic."""
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return next(iter(str(message).splitlines()), "")


@contextmanager
def _signals_passed_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Pass a request to stop on to a process, as SIGTERM, while the block lasts; Ctrl-C after that kills it.

    Another SIGTERM or SIGHUP does not: whoever sends those may send them twice, e.g. the shell and the system where a
    terminal is closed.

    Raises:
        Stopped: Somebody does not want to wait.
    """
    asked = False

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            process.send_signal(signal.SIGTERM)
        elif signum == signal.SIGINT:
            _kill_all(process.pid)
            raise Stopped(signum, "run the same command again to continue from the last checkpoint, if there is one")

    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
    for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(caught) != signal.SIG_IGN:  # as nohup asks for
            before[caught] = signal.signal(caught, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill_all(pid: int) -> None:
    """Kill a process and all below it; torchrun's ranks are in sessions of their own."""
    import psutil

    top = psutil.Process(pid)
    for process in (*top.children(recursive=True), top):
        with suppress(psutil.NoSuchProcess):
            process.kill()
