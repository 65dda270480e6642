"""How the ranks of a job are started: a launcher takes the place of a spec, and waits for the ranks' end."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from calm_core.config.training import MOST_NODES, TrainingConfig
from calm_core.errors import ConfigError, Stopped
from calm_core.shown import brief
from calm_core.telemetry.processes import oom_kills
from calm_core.training.log import TrainingLog

WORKER = "calm_core.training.worker"
"""What every rank runs, with the URI of a spec as its one argument."""
EXIT_NO_MEETING = 69
"""Of the launcher's process: the nodes did not meet, and no rank was started (EX_UNAVAILABLE)."""
_AGENT = "calm_core.training.agent"
_STANDARD_ERROR = 2
_MOST_RANKS = 1024
_AT_ONCE = 1.0
"""Seconds in which a second SIGTERM is the same request, which a whole group of processes or several processes tell."""
_FOLDER_PREFIX = "calm-training-"
_LAST_SECONDS = 10.0  # within which the ranks are gone when torchrun is


@dataclass(frozen=True)
class Ending:
    """How the ranks ended.

    Attributes:
        exit_code: 0 when all of them have finished, 75 when they were asked to stop; below 0 the signal that has ended
            the launcher's own process, above 128 that of a rank.
        message: What the first one that failed said, on one line; empty where it could not say.
        for_memory: Whether the kernel has killed processes for want of memory meanwhile.
        cause: What the launcher knows of it that no rank could say, e.g. that a machine was taken away; it counts for
            more than what the other ranks say.
    """

    exit_code: int
    message: str = ""
    for_memory: bool = False
    cause: str = ""


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

    def is_at_work(self, spec_uri: str) -> bool:
        """Whether ranks of a job are there that a launcher has started which itself is gone: `run` waits for those."""
        ...

    def run(self, spec_uri: str, processes: int | None, log: str) -> Ending:
        """Start the ranks of a job and wait for them.

        Args:
            spec_uri: Of the job.
            processes: As for `world_size`.
            log: A local file to which everything is appended that the ranks print; empty for none.
        """
        ...


@dataclass(frozen=True)
class Nodes:
    """Machines that share a job, with a rendezvous at an address that is known beforehand.

    Each one runs a launcher, or plain torchrun with the same worker and spec:
    ``torchrun --nnodes=2 --node-rank=1 --master-addr=... --master-port=... -m calm_core.training.worker SPEC``.

    Attributes:
        count: Of the machines.
        address, port: Where node 0 is reached.
        rank: Which one this is.
        processes: Ranks on each, where the settings do not say; None: as many as fit.
    """

    count: int
    address: str
    port: int
    rank: int = 0
    processes: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Nodes | None":
        """What torchrun's own variables say, as Kubeflow's Trainer sets them: PET_NNODES and so on.

        Returns:
            None where they name a single machine, or none.

        Raises:
            ConfigError: One is missing or impossible.
        """

        def number(name: str, least: int, most: int) -> int:
            text = environment.get(name, "")
            if not text:
                raise ConfigError(f"{name} is not set, and PET_NNODES is; set it on every node")
            if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
                raise ConfigError(f"{name}: {brief(text)} is no whole number from {least} to {most}")
            return int(text)

        if not environment.get("PET_NNODES"):
            return None
        count = number("PET_NNODES", 1, MOST_NODES)
        if count == 1:
            return None
        if not (address := environment.get("PET_MASTER_ADDR", "")) or address != "".join(address.split()):
            raise ConfigError(f"PET_MASTER_ADDR: {brief(address)} is no address; give that of node 0 on every node")
        processes = environment.get("PET_NPROC_PER_NODE", "auto")
        return cls(
            count,
            address,
            number("PET_MASTER_PORT", 1, 65535),
            number("PET_NODE_RANK", 0, count - 1),
            None if processes in ("auto", "gpu", "cpu") else number("PET_NPROC_PER_NODE", 1, _MOST_RANKS),
        )


def require_nodes(config: TrainingConfig, nodes: Nodes | None) -> None:
    """Refuse settings that ask for other machines than torchrun is told of.

    Args:
        config: The settings.
        nodes: What torchrun's own variables say.

    Raises:
        ConfigError: They do.
    """
    kind, count = config.kind, nodes.count if nodes else 1
    if config.launcher == "trainjob":
        raise ConfigError(
            f"{kind}.launcher: trainjob is for a pipeline in a cluster; submit it there, or set it to auto"
        )
    if config.nodes not in (1, count):
        here = f"PET_NNODES is {count}" if nodes else "this is one machine"
        raise ConfigError(
            f"{kind}.nodes is {config.nodes}, {here}; submit the pipeline to a cluster, run `calm train` on each "
            f"machine with PET_NNODES={config.nodes}, or set it to {count}"
        )


@dataclass(frozen=True)
class Request:
    """What the launcher's own process is to start.

    Attributes:
        worker: The module that each rank runs.
        spec_uri: Its argument.
        processes: Ranks on this node.
        temporary: A folder that goes with the ranks.
        log: A file for what they print; empty for none.
        nodes: Machines that share the job; None for this one alone.
    """

    worker: str
    spec_uri: str
    processes: int
    temporary: str
    log: str
    nodes: Nodes | None

    def to_json(self) -> str:
        """As an argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Request":
        """What `to_json` has written."""
        values = json.loads(text)
        return cls(**values | {"nodes": values["nodes"] and Nodes(**values["nodes"])})


class TorchrunLauncher:
    """torchrun on this machine: one rank a GPU, or one on CPU; what it says goes to standard error.

    The first SIGTERM, SIGINT or SIGHUP is passed on, so that the ranks save a checkpoint before they end, however long
    that takes; a later SIGTERM, or Ctrl-C, ends them as they are.

    Args:
        nodes: The machines that share the job; None for this one alone.
    """

    def __init__(self, nodes: Nodes | None = None) -> None:
        self._nodes = nodes

    def world_size(self, processes: int | None) -> int:
        """The ranks of all nodes, each of which is like this one."""
        return self._here(processes) * (self._nodes.count if self._nodes else 1)

    def _here(self, processes: int | None) -> int:
        """The ranks of this node."""
        import torch  # costs seconds: only where ranks are counted

        told = self._nodes.processes if self._nodes else None
        if processes and told and processes != told:
            raise ConfigError(f"processes is {processes}, PET_NPROC_PER_NODE is {told}; leave one of them out")
        gpus, asked = torch.cuda.device_count(), processes or told
        if gpus and asked and asked > gpus:
            raise ConfigError(f"processes is {asked}, this machine has {gpus} GPUs; lower it")
        return asked or gpus or 1

    def is_at_work(self, spec_uri: str) -> bool:
        """No: they end with the launcher."""
        return False

    def run(self, spec_uri: str, processes: int | None, log: str = "") -> Ending:
        """Run torchrun. Its error file holds what the first rank that failed has recorded.

        torch leaves folders where temporary files go, so for the ranks this is a folder of their own.
        """
        here, killed_before = self._here(processes), oom_kills()
        ours, theirs = socket.socketpair()  # its other end is open for as long as one of them lives, here or there
        with ours, _temporary_folder() as folder:
            error_file = Path(folder) / "error.json"
            request = Request(WORKER, spec_uri, here, folder, log, self._nodes)
            _say(log, f"start of {here} ranks: {spec_uri}")
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-m", _AGENT, request.to_json()],
                    env=_environment(here) | {"TORCHELASTIC_ERROR_FILE": str(error_file), "TMPDIR": folder},
                    stdin=theirs.fileno(),
                    stdout=_STANDARD_ERROR,
                    process_group=0,  # Ctrl-C in a terminal comes from here alone, and once
                )
            with process, _signals_passed_on(process):
                code = process.wait()
            _wait_for_end(ours)
            _say(log, f"end with exit code {code}")
            return Ending(code, _recorded(error_file), for_memory=oom_kills() > killed_before)


@contextmanager
def _temporary_folder() -> Iterator[str]:
    """A folder while the block lasts; those go that others have left who were killed, with all that they had started.

    Whoever is alive has a lock on its folder.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        with suppress(OSError), _locked(left):  # it is somebody's, or of another user
            shutil.rmtree(left, ignore_errors=True)
    with ExitStack() as stack:
        while True:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, ignore_cleanup_errors=True))
            try:
                stack.enter_context(_locked(Path(folder)))
            except (BlockingIOError, FileNotFoundError):  # somebody takes it for one that was left
                continue
            except OSError:  # this disk knows no locks
                break
            if Path(folder).exists():
                break
        yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock.

    Raises:
        OSError: Somebody else does, or it cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _say(log: str, text: str) -> None:
    if log:
        with closing(TrainingLog(log)) as file:
            file.say("launcher", text)


def _wait_for_end(ours: socket.socket) -> None:
    """Wait until no rank lives: where torchrun was killed, they notice it in a moment."""
    ours.settimeout(_LAST_SECONDS)
    with suppress(OSError):
        ours.recv(1)


def _environment(processes: int) -> dict[str, str]:
    import torch

    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    # torch's profiler reads where torch is imported whether to print when it starts and stops.
    environment = {"OMP_NUM_THREADS": str(threads), "KINETO_LOG_LEVEL": "6"} | os.environ
    # Where torch computes, DeepSpeed has to as well, whatever it finds or has been told.
    return environment | {"DS_ACCELERATOR": "cuda" if torch.cuda.is_available() else "cpu"}


def _recorded(error_file: Path) -> str:
    """The message in an error file of torch elastic."""
    try:
        message = json.loads(error_file.read_text(encoding="utf-8"))["message"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return next(iter(str(message).splitlines()), "")


def _signals_passed_on(process: "subprocess.Popen[bytes]") -> AbstractContextManager[None]:
    """Pass a request to stop on to a process, as SIGTERM; what does not want to wait kills it."""
    return requests_to_stop(lambda: process.send_signal(signal.SIGTERM), lambda: _kill_all(process.pid))


@contextmanager
def requests_to_stop(ask: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Pass a request to stop on while the block lasts; SIGTERM or Ctrl-C after that do not want to wait.

    A SIGTERM that follows at once does: it may be told to a whole group of processes, and by several of them. So does
    SIGHUP, which both the shell and the system send where a terminal is closed.

    Args:
        ask: Passes it on; called in a handler of the main thread, so it is quick.
        end: Ends what is at work as it is.

    Raises:
        Stopped: Somebody does not want to wait.
    """
    asked: float | None = None

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked is None:
            asked = time.monotonic()
            ask()
        elif signum == signal.SIGINT or (signum == signal.SIGTERM and time.monotonic() > asked + _AT_ONCE):
            end()
            raise Stopped(signum, "run the same command again to continue from the last checkpoint, if there is one")

    before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
    is_told = threading.current_thread() is threading.main_thread()  # Python tells no other thread of signals
    for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if is_told else ():
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

    with suppress(psutil.NoSuchProcess):  # it has ended just now
        top = psutil.Process(pid)
        for process in (*top.children(recursive=True), top):
            with suppress(psutil.NoSuchProcess):
                process.kill()
