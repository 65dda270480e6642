"""Ranks of a training that meet faults at chosen steps: real processes, forked from one that has imported all.

A rank that torchrun starts imports for seconds; these begin at once, so that a test can afford many starts.
"""

import gc
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from calm_core.errors import CalmError
from calm_core.training.launcher import WORKER, Ending
from pipelines.local.object_store import free_port

os.environ.setdefault("DS_ACCELERATOR", "cpu")
_CONTEXT = get_context("forkserver")
# The last two are what torch and DeepSpeed import when an engine starts.
_CONTEXT.set_forkserver_preload(
    [WORKER, __name__, "s3fs", "torch._inductor", "deepspeed.runtime.zero.muon.muon_optimizer"]
)

Fault = Callable[[], object]
"""Something that happens in a rank."""


class ForkedLauncher:
    """Forks the ranks of a training, and kills the others when one has failed.

    A checkpoint counts before the next step begins, so that a test knows which ones there are at a step.

    Args:
        faults: What happens in the last rank when it takes its n-th batch; the first is 1.
    """

    def __init__(self, faults: Mapping[int, Fault] | None = None) -> None:
        self._faults = dict(faults or {})

    def world_size(self, processes: int | None) -> int:
        return processes or 1

    def is_at_work(self, spec_uri: str) -> bool:
        return False

    def run(self, spec_uri: str, processes: int | None, log: str = "") -> Ending:
        code = run_forked(self.world_size(processes), _train_rank, spec_uri, self._faults)
        return Ending(128 - code if code < 0 else code)


def run_forked(ranks: int, run: Callable[..., object], *arguments: Any) -> int:
    """Call a function in each of so many ranks.

    Returns:
        How the first rank has ended that failed, as `subprocess` tells it; the others are killed then. 0 if none has.
    """
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    running = []
    for rank in range(ranks):
        environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(_CONTEXT.Process(target=_run_rank, args=(environment, run, arguments), daemon=True))
        running[-1].start()
    code = 0
    while running and not code:
        connection.wait([process.sentinel for process in running])
        ended = [process for process in running if not process.is_alive()]
        code = next((process.exitcode for process in ended if process.exitcode), 0)
        running = [process for process in running if process not in ended]
    for process in running:
        process.join(timeout=1)  # it may be about to say why
        process.kill()
        process.join()
    return code


def _run_rank(environment: Mapping[str, str], run: Callable[..., object], arguments: Sequence[Any]) -> None:
    gc.freeze()  # DeepSpeed collects garbage at each engine in bf16, and need not look at all that is imported
    os.environ.clear()
    os.environ.update(environment)
    run(*arguments)


def _train_rank(spec_uri: str, faults_of_last: Mapping[int, Fault]) -> None:
    from calm_core.training import worker

    prepare_rank(faults_of_last if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1 else {})
    try:
        worker.main(spec_uri)
    except CalmError as error:
        raise SystemExit(error.exit_code) from None


def prepare_rank(faults: Mapping[int, Fault]) -> None:
    """Let faults happen in this process, see `ForkedLauncher`; its checkpoints count at once."""
    from calm_core.data.reading.loader import Loader
    from calm_core.training.checkpoint import Checkpointer

    taken, next_batch, save = 0, Loader.next_batch, Checkpointer.save

    def next_batch_or_fault(loader: Loader) -> Any:
        nonlocal taken
        taken += 1
        if fault := faults.get(taken):
            fault()
        return next_batch(loader)

    def save_at_once(checkpointer: Checkpointer, *arguments: Any) -> None:
        save(checkpointer, *arguments)
        checkpointer.finish()

    Loader.next_batch, Checkpointer.save = next_batch_or_fault, save_at_once  # type: ignore[method-assign]


def forked_training(worker: str, environment: Mapping[str, str], *arguments: Any, **settings: Any) -> BaseProcess:
    """A process that trains by torchrun, whose ranks run a worker of the tests.

    Args:
        worker: Its module.
        environment: More of it.
        arguments, settings: Of `train`.
    """
    arguments = worker, os.environ | environment, arguments, settings
    process = _CONTEXT.Process(target=_train, args=arguments, daemon=True)
    process.start()
    return process


def _train(worker: str, environment: Mapping[str, str], arguments: Sequence[Any], settings: Mapping[str, Any]) -> None:
    from calm_core.training import launcher, stage

    os.environ.clear()
    os.environ.update(environment)
    launcher.WORKER = worker
    try:
        stage.train(*arguments, **settings)
    except CalmError as error:
        raise SystemExit(error.exit_code) from None


def sent(number: int) -> Fault:
    """A signal comes."""
    return partial(_send, number)


def _send(number: int) -> None:
    os.kill(os.getpid(), number)


KILLED, ASKED_TO_STOP = sent(signal.SIGKILL), sent(signal.SIGTERM)


def filled(disk: Path) -> Fault:
    """A disk becomes full."""
    return partial(_fill, disk / "others")


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def emptied(disk: Path) -> Fault:
    """It has room again."""
    return partial(Path.unlink, disk / "others")


def mounted(disk: Path, option: str) -> Fault:
    """A disk can only be read ("ro"), or written again ("rw")."""
    return partial(subprocess.run, ["mount", "-o", f"remount,{option}", str(disk)], check=True)
