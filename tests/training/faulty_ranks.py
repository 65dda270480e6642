"""Ranks of a training that meet a fault at a chosen step: real processes, forked from one that has imported all.

A rank of torchrun takes seconds to import what it needs; these start at once, so that a test can afford many faults.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing import connection, get_context
from pathlib import Path

from calm_core.training.launcher import WORKER, Ending
from pipelines.local.object_store import free_port

os.environ.setdefault("DS_ACCELERATOR", "cpu")
_CONTEXT = get_context("forkserver")
# The last is what torch and DeepSpeed import when an engine starts: their compiler.
_CONTEXT.set_forkserver_preload([WORKER, __name__, "torch._inductor", "deepspeed.runtime.zero.muon.muon_optimizer"])

Fault = Callable[[], object]
"""What happens in a rank."""


class ForkedLauncher:
    """Forks the ranks of a training, and ends all of them when one fails, as torchrun does.

    Args:
        faults: What happens in rank 0 when it takes its n-th batch, the first is 1.
    """

    def __init__(self, faults: Mapping[int, Fault] | None = None) -> None:
        self._faults = dict(faults or {})

    def world_size(self, processes: int | None) -> int:
        return processes or 1

    def run(self, spec_uri: str, processes: int | None) -> Ending:
        ranks = self.world_size(processes)
        shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        running = [
            _CONTEXT.Process(
                target=_run_rank,
                args=(spec_uri, os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}),
                kwargs={"faults": {} if rank else self._faults},
            )
            for rank in range(ranks)
        ]
        for process in running:
            process.start()
        code = 0
        while running and not code:
            ended = connection.wait([process.sentinel for process in running])
            code = next((p.exitcode for p in running if p.sentinel in ended and p.exitcode), 0)
            running = [process for process in running if process.sentinel not in ended]
        for process in running:
            process.kill()
            process.join()
        return Ending(128 - code if code < 0 else code)


def _run_rank(spec_uri: str, environment: Mapping[str, str], faults: Mapping[int, Fault]) -> None:
    from calm_core.data.reading.loader import Loader
    from calm_core.training import worker

    os.environ.clear()
    os.environ.update(environment)
    taken, next_batch = 0, Loader.next_batch

    def counted(loader: Loader) -> object:
        nonlocal taken
        taken += 1
        faults.get(taken, lambda: None)()
        return next_batch(loader)

    Loader.next_batch = counted
    worker.main(spec_uri)


def is_sent(number: int) -> Fault:
    """A signal comes."""
    return partial(_send, number)


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


def is_mounted(folder: Path, options: str) -> Fault:
    """The disk at a folder becomes full, or can only be read, or is well again."""
    return partial(subprocess.run, ["mount", "-o", f"remount,{options}", str(folder)], check=True)


KILLED = is_sent(signal.SIGKILL)
ASKED_TO_STOP = is_sent(signal.SIGTERM)
