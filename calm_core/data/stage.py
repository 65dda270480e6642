"""The stage `prepare`: all steps of preparing, on this machine."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import repeat
from multiprocessing import active_children, get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.merge import Prepared, dataset_settings, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.preparing.tokenize import tokenize_partition
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.data.sources.files import find_files
from calm_core.errors import ArtifactError, CalmError, ConfigError, Stopped
from calm_core.store import storage
from calm_core.store.artifact import UNFINISHED_NAME, Artifact, ArtifactWriter, is_artifact
from calm_core.store.facts import DatasetFacts, Facts, TokenizerFacts
from calm_core.store.lock import FolderLock
from calm_core.telemetry.processes import PARENT_VARIABLE, SIGNALLED, end_with_parent, killed_by

_PLAN = "plan"
_PARTS = re.compile(r"(?:scan|shards)-\d{5,}|duplicates|tokenizer")
_PARTS_AT_A_TIME = 16
_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # they come to all its processes; the first one ends the others
_SECONDS = 5.0  # for a process to leave no file half-written


def prepare_data(
    data: DataConfig, tokenizer: TokenizerConfig, output_uri: str, workers: int = 1, *, overwrite: bool = False
) -> Artifact[DatasetFacts]:
    """All steps on one machine, with as many processes as `workers`; the bytes do not depend on how many.

    The intermediate artifacts lie beside the dataset, in `<output_uri>.parts`. What a stopped run has finished of them
    is taken by the next one; what is half-written or of other settings is made anew. Another dataset that lies at the
    output is replaced with `overwrite` (see `ArtifactWriter`).

    Raises:
        CalmError: A step failed, or its process was killed; or what lies at the output, or where the parts go, is not
            ours to replace; or somebody else is at work there.
        Stopped: This process was asked to end; what is finished of the partitions is kept.
    """
    if data.extends and storage.path_to(data.extends) == storage.path_to(output_uri):
        raise ConfigError(f"{output_uri}: is the dataset that is extended; give the larger one another output_uri")
    extension = Extension.of(data)
    parents = {"extends": extension.parent.digest} if extension else {}
    place = storage.beside(output_uri, ".parts")

    def writer(**known: str) -> ArtifactWriter[DatasetFacts]:
        return ArtifactWriter(output_uri, DatasetFacts, dataset_settings(data), parents | known, overwrite=overwrite)

    writer().check(lambda _: _is_of(Artifact(output_uri, DatasetFacts), data, tokenizer, extension, place))
    with FolderLock(output_uri, "name another output, or wait for it"):
        _clear_parts(place)
        partitions = plan_partitions(data, storage.join(place, _PLAN), outputs=(output_uri, place))
        names = [f"{partition.index:05d}" for partition in partitions]

        def uris(step: str) -> list[str]:
            return [storage.join(place, f"{step}-{name}") for name in names]

        with _Workers(min(workers, len(partitions))) as processes:
            each = processes.each
            each(scan_partition, partitions, repeat(data), uris("scan"))
            found = find_duplicates(uris("scan"), data, storage.join(place, "duplicates")).uri
            trained = train_tokenizer(partitions, tokenizer, data, storage.join(place, "tokenizer"))
            writer(tokenizer=trained.digest).check()  # its parts may no longer have told
            each(tokenize_partition, partitions, repeat(data), repeat(trained.uri), repeat(found), uris("shards"))
        prepared = Prepared(
            partitions=partitions,
            scan_uris=uris("scan"),
            shards_uris=uris("shards"),
            duplicates_uri=found,
            tokenizer_uri=trained.uri,
        )
        return merge_partitions(data, prepared, output_uri, overwrite=overwrite)


def _is_of(
    made: Artifact[DatasetFacts],
    data: DataConfig,
    tokenizer: TokenizerConfig,
    extension: Extension | None,
    place: str,
) -> bool:
    """Whether a dataset was made from the same texts and, as far as its parts still tell, with the same tokenizer."""
    files, first = find_files(data), 0
    if extension:
        files, first = extension.files_to_read(files)
    found = {file.uri: file for file in (*(extension.files if extension and first else ()), *files)}
    same_texts = [file.digest for file in made.facts.sources] == [file.digest for file in found.values()]
    if not same_texts or ("extends" in made.manifest.parents) != bool(extension):
        return False
    with suppress(ArtifactError):
        trained = Artifact(storage.join(place, "tokenizer"), TokenizerFacts)
        if trained.digest == made.manifest.parents.get("tokenizer"):
            asked = tokenizer.model_dump(mode="json", exclude={"source"})
            return asked.items() <= trained.manifest.config.items()
    return True


def _clear_parts(place: str) -> None:
    """Take the folder of the parts; what is half-written or damaged there goes.

    Raises:
        ArtifactError: It is no folder of ours.
    """
    if storage.exists(place) and not storage.is_folder(place):
        raise ArtifactError(f"{place}: is no folder, and the parts of the dataset go there; name another output")
    names = [name for name in storage.names_in(place) if not storage.is_partial(name)]
    parts = [name for name in names if _PARTS.fullmatch(name)]
    with ThreadPoolExecutor(_PARTS_AT_A_TIME) as pool:
        are_whole = list(pool.map(is_artifact, [storage.join(place, name) for name in parts]))
    unusable = [name for name, is_whole in zip(parts, are_whole, strict=True) if not is_whole]
    others = sorted({*names} - {*parts, _PLAN})
    if UNFINISHED_NAME not in names and (unusable or others or names == [_PLAN]):
        raise ArtifactError(
            f"{place}: holds other files ({(unusable or others or names)[0]}), and the parts of the dataset go there; "
            "name another output, or delete the folder"
        )
    storage.write(storage.join(place, UNFINISHED_NAME), b"parts")
    for name in unusable:
        storage.remove_folder(storage.join(place, name))


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
        with _without_the_terminal():  # it starts a process that keeps count of shared resources
            # A fork would inherit the threads of Arrow and of the object store's library in an unknown state.
            self._pool = ProcessPoolExecutor(number, get_context("spawn"), _begin) if number > 1 else None
        self._others = {*active_children()}
        self._processes: set[BaseProcess] = set()

    def each(self, step: Callable[..., Artifact[Facts]], *arguments: Any) -> None:
        """Do a step of every partition; the arguments as `map` takes them."""
        if self._pool is None:
            list(map(step, *arguments))
            return
        with _without_the_terminal():
            results = self._pool.map(step, *arguments)
        self._processes |= {*active_children()} - self._others
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
        if error and not isinstance(error, BrokenProcessPool):  # then the pool has asked the others already
            _end(self._processes)
        self._pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            codes = {process.exitcode or 0 for process in self._processes} - {
                -signal.SIGTERM,
                SIGNALLED + signal.SIGTERM,
            }
            how = next(filter(None, map(killed_by, codes)), "ended")
            raise CalmError(
                f"a preparing process {how}; run the same command again (with fewer workers): finished partitions are "
                "kept",
                can_pass=True,
            ) from None


@contextmanager
def _without_the_terminal() -> Iterator[None]:
    """Processes that start in the block never see what comes from the terminal; what comes here meanwhile, waits."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(SIGNALLED + number))
    os.environ.pop(PARENT_VARIABLE, None)  # of whoever has started the process that has started this one
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGKILL))
