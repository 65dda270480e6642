"""torchrun for `TorchrunLauncher`: ``python -m calm_core.training.agent REQUEST``, with a `Request` as JSON.

It says nothing of its own: whoever waits tells in one line what torchrun tells in pages. What its ranks print passes
through it, to standard error and to the log. Asked to stop, by SIGTERM, SIGINT or SIGHUP, it asks each rank once and
waits for as long as they need. It ends with the process that started it, which it knows by its standard input, and
then kills its ranks as they are.

Exit codes: 0 finished, 75 asked to stop, 69 the nodes did not meet, else that of the rank that failed first; 128 + the
signal that killed it.
"""

import logging
import os
import select
import shutil
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Sequence
from contextlib import suppress

import psutil
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, record
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, launch_agent

from calm_core.errors import EXIT_FAILED, EXIT_INTERRUPTED
from calm_core.telemetry.processes import PARENT_VARIABLE, SIGNALLED
from calm_core.training.launcher import EXIT_NO_MEETING, Request
from calm_core.training.log import TrainingLog

_STANDARD_INPUT, _STANDARD_ERROR = 0, 2
_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_MEETING_SECONDS = 900
"""How long a node waits for the others to start."""
_CLOSING_SECONDS = 10
"""Once a rank has failed torch asks the others to end, and kills them after 30 s: who is dead sooner was killed by
somebody else."""
_POLL_SECONDS = 0.2
_LONGEST_LINE = 1 << 16
_END = b"\x04\n"  # of what a rank says


def main(request: Request) -> int:
    """Run the ranks; returns the exit code."""
    logging.disable(logging.CRITICAL)
    os.environ[PARENT_VARIABLE] = str(os.getpid())  # for the ranks
    log = TrainingLog(request.log) if request.log else None
    ranks = _Ranks(log)
    watch = _Watch(request.temporary, ranks, log)
    try:
        _launch(request, ranks)
    except SignalException as error:
        return SIGNALLED + error.sigval
    except ChildFailedError as error:
        return _exit_code(list(error.failures.values()), watch.is_asked)
    except (DistError, RendezvousError):
        return EXIT_FAILED if ranks.are_started else EXIT_NO_MEETING
    except Exception:
        ranks.tell("torchrun", traceback.format_exc().encode())
        return EXIT_FAILED
    finally:
        watch.wait_if_ending()
        ranks.drain()
    return 0


@record
def _launch(request: Request, ranks: "_Ranks") -> None:
    """Run torch's agent until all ranks have ended; what fails first is told in its error file."""
    nodes = request.nodes
    config = LaunchConfig(
        min_nodes=nodes.count if nodes else 1,
        max_nodes=nodes.count if nodes else 1,
        nproc_per_node=request.processes,
        role="default",
        run_id="none" if nodes else str(uuid.uuid4()),  # as torchrun's: a node may be started by it
        rdzv_backend="static" if nodes else "c10d",
        rdzv_endpoint=f"{nodes.address}:{nodes.port}" if nodes else "localhost:0",
        rdzv_configs={"timeout": _MEETING_SECONDS} | ({"rank": nodes.rank} if nodes else {}),
        local_addr=None if nodes else "localhost",  # a container may not know its own name
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are ours: at those, torch waits 30 s and kills
        logs_specs=ranks,
    )
    launch_agent(config, sys.executable, ["-u", "-m", request.worker, request.spec_uri])


class _Ranks(DefaultLogsSpecs):
    """What the ranks print, line by line, to standard error as it is and to the log with their names.

    Attributes:
        are_started: Whether there are any.
    """

    def __init__(self, log: TrainingLog | None) -> None:
        super().__init__()
        self._log = log
        self._writers: list[int] = []
        self._threads: list[threading.Thread] = []
        self.are_started = False

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Where each rank prints to: into a pipe, which a thread reads."""
        self.are_started = True
        places = super().reify(envs)
        for rank, environment in envs.items():
            reader, writer = os.pipe()
            places.stdouts[rank] = places.stderrs[rank] = f"/dev/fd/{writer}"
            self._writers.append(writer)
            pump = threading.Thread(target=self._pass_on, args=(reader, f"rank {environment['RANK']}"), daemon=True)
            pump.start()
            self._threads.append(pump)
        return places

    def _pass_on(self, reader: int, who: str) -> None:
        with open(reader, "rb") as lines:
            is_over = False
            while not is_over and (line := lines.readline(_LONGEST_LINE)):
                is_over = line.endswith(_END)
                self.tell(who, line.removesuffix(_END))

    def tell(self, who: str, line: bytes) -> None:
        """Put a line to standard error and into the log."""
        with suppress(OSError):  # nobody reads it any more: the ranks go on
            os.write(_STANDARD_ERROR, line)
        if self._log:
            self._log.say(who, line.decode(errors="replace"))

    def drain(self) -> None:
        """Wait until all has been passed on that ranks have said; they have ended."""
        for writer, thread in zip(self._writers, self._threads, strict=True):
            os.write(writer, _END)
            thread.join(timeout=_CLOSING_SECONDS)


class _Watch:
    """Sees in a thread what this process is told: torch may wait where no handler of Python's would run.

    Attributes:
        is_asked: Whether the ranks are to stop.
    """

    def __init__(self, temporary: str, ranks: _Ranks, log: TrainingLog | None) -> None:
        self._temporary = temporary
        self._log = log
        self._ranks = ranks
        self._told: set[int] = set()
        self._is_ending = False
        self.is_asked = False
        self._signals, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in _REQUESTS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks for
                signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            seconds = _POLL_SECONDS if self.is_asked else None  # ranks may be about to start
            ready, _, _ = select.select([self._signals, _STANDARD_INPUT], [], [], seconds)
            if _STANDARD_INPUT in ready:
                self._end()
            if self._signals in ready:
                self.is_asked |= any(number in _REQUESTS for number in os.read(self._signals, 64))
            if self.is_asked:
                self._ask()

    def _ask(self) -> None:
        """Ask each rank to stop, those that are being started too; none is asked twice."""
        if not self._ranks.are_started:
            os._exit(EXIT_INTERRUPTED)
        for rank in psutil.Process().children():
            if rank.pid not in self._told:
                self._told.add(rank.pid)
                with suppress(psutil.NoSuchProcess):
                    rank.terminate()

    def _end(self) -> None:
        """The process that waits has gone: end the ranks as they are, and leave nothing."""
        self._is_ending = True
        ranks = psutil.Process().children(recursive=True)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()
        psutil.wait_procs(ranks, timeout=_CLOSING_SECONDS)
        if self._log:
            self._log.say("torchrun", "whoever waits for the ranks has gone; they are killed")
        shutil.rmtree(self._temporary, ignore_errors=True)
        os._exit(EXIT_FAILED)

    def wait_if_ending(self) -> None:
        """Let the end of this process be that of `_end`, where it has begun."""
        if self._is_ending:
            self._thread.join()


def _exit_code(failures: Sequence[ProcessFailure], is_asked: bool) -> int:
    """What tells best why the ranks have ended."""
    failures = sorted(failures, key=lambda failure: failure.timestamp)
    codes = [one.exitcode for one in failures if one.timestamp <= failures[0].timestamp + _CLOSING_SECONDS]
    if is_asked and not {EXIT_INTERRUPTED, -signal.SIGTERM}.isdisjoint(codes):
        return EXIT_INTERRUPTED  # of others it takes the connections
    # What the other ranks meet when one is killed, e.g. a lost connection, follows from it.
    first = next((code for code in codes if code < 0 and code != -signal.SIGTERM), codes[0])
    return SIGNALLED - first if first < 0 else first


if __name__ == "__main__":
    sys.exit(main(Request.from_json(sys.argv[1])))
