"""The stage `prepare`: all steps of preparing, on this machine."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from multiprocessing import active_children, get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

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

    with _Workers(min(workers, len(partitions))) as processes:
        each = processes.each
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


class _Workers:
    """Processes that work while the block lasts, each on a partition; with one, it is this process.

    If the block fails they end at once.

    Args:
        number: How many.

    Raises:
        CalmError: One was killed.
        Stopped: This process was asked to end.
    """

    def __init__(self, number: int) -> None:
        # A fork would inherit the threads of Arrow and of the object store's library in an unknown state.
        self._pool = ProcessPoolExecutor(number, get_context("spawn"), _begin) if number > 1 else None
        self._others = {*active_children()}
        self._processes: set[BaseProcess] = set()

    def each(self, step: Callable[..., Artifact[Facts]], *arguments: Any) -> None:
        """Do a step of every partition; the arguments as `map` takes them."""
        if self._pool is None:
            list(map(step, *arguments))
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)  # processes that start here inherit it
        try:
            results = self._pool.map(step, *arguments)
            self._processes |= {*active_children()} - self._others
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        list(results)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Stopped):
            error.again = "run the same command again to go on: finished partitions are kept"
        if self._pool is None:
            return
        codes = [process.exitcode or 0 for process in self._processes]
        if error:
            _end(self._processes)
        self._pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            how = next((how for code in codes if code != -signal.SIGTERM and (how := killed_by(code))), "ended")
            raise CalmError(
                f"a preparing process {how}; run the same command again (with fewer workers): finished partitions are "
                "kept",
                can_pass=True,
            ) from None


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
