"""The stage `prepare`: all steps of preparing, on this machine."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from multiprocessing import active_children, get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.merge import Prepared, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.preparing.tokenize import tokenize_partition
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.errors import CalmError, ConfigError, Stopped
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DatasetFacts, Facts
from calm_core.telemetry.processes import end_with_parent, killed_by

_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # they come to all its processes; the first one ends the others
_SHELL = 128
_SECONDS = 5.0  # for a process to leave no file half-written


def prepare_data(
    data: DataConfig, tokenizer: TokenizerConfig, output_uri: str, workers: int = 1
) -> Artifact[DatasetFacts]:
    """All steps on one machine, with as many processes as `workers`; the bytes do not depend on how many.

    The intermediate artifacts lie beside the dataset, in `<output_uri>.parts`. What a stopped run has finished of them
    is taken by the next one.

    Raises:
        CalmError: A step failed, or its process was killed.
        Stopped: This process was asked to end; what is finished of the partitions is kept.
    """
    extension = Extension.of(data)
    if extension and storage.absolute(data.extends) == storage.absolute(output_uri):
        raise ConfigError(f"{output_uri}: is the dataset that is extended; give the larger one another output_uri")
    parents = {"extends": extension.parent.digest} if extension else {}
    ArtifactWriter(output_uri, DatasetFacts, {}, parents).check()  # before the work whose result it takes
    place = storage.beside(output_uri, ".parts")
    partitions = plan_partitions(data, storage.join(place, "plan"), outputs=(output_uri, place))
    names = [f"{partition.index:05d}" for partition in partitions]

    def uris(step: str) -> list[str]:
        return [storage.join(place, f"{step}-{name}") for name in names]

    with _processes(min(workers, len(partitions))) as pool:
        each = partial(_each, pool)
        each(scan_partition, partitions, repeat(data), uris("scan"))
        found = find_duplicates(uris("scan"), data, storage.join(place, "duplicates")).uri
        trained = train_tokenizer(partitions, tokenizer, data, storage.join(place, "tokenizer")).uri
        each(tokenize_partition, partitions, repeat(data), repeat(trained), repeat(found), uris("shards"))
    prepared = Prepared(
        partitions=partitions,
        scan_uris=uris("scan"),
        shards_uris=uris("shards"),
        duplicates_uri=found,
        tokenizer_uri=trained,
    )
    return merge_partitions(data, prepared, output_uri)


def _each(pool: ProcessPoolExecutor | None, step: Callable[..., Artifact[Facts]], *arguments: Any) -> None:
    list(map(step, *arguments) if pool is None else pool.map(step, *arguments))


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that work while the block lasts; None for this one alone. If it fails they end at once.

    Raises:
        CalmError: One was killed.
        Stopped: This process was asked to end.
    """
    if workers == 1:
        yield None
        return
    others = {*active_children()}
    # A fork would inherit the threads of Arrow and of the object store's library in an unknown state.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)  # the processes inherit it
    try:
        pool.submit(_begin)  # starts all of them
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    processes = {*active_children()} - others
    with pool:
        try:
            yield pool
        except BaseException as error:
            codes = [process.exitcode or 0 for process in processes]
            _end(processes)
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                how = next((how for code in codes if code != -signal.SIGTERM and (how := killed_by(code))), "ended")
                raise CalmError(
                    f"a preparing process {how}; run the same command again (with fewer workers): finished partitions "
                    "are kept",
                    can_pass=True,
                ) from None
            if isinstance(error, Stopped):
                error.again = "run the same command again to go on: finished partitions are kept"
            raise


def _end(processes: Iterable[BaseProcess]) -> None:
    """Ask processes to end, and kill those that take their time."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _SECONDS
    for process in processes:
        wait([process.sentinel], max(0.0, until - time.monotonic()))
        process.kill()


def _begin() -> None:
    """Begin a process of the pool: it ends with its parent; asked to end, it leaves no file half-written."""
    for number in _OF_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_SHELL + number))
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGKILL))
