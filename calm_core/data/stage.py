"""The stage `prepare`: all steps of preparing, on this machine."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from typing import Any

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.merge import Prepared, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.preparing.tokenize import tokenize_partition
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.errors import CalmError, ConfigError
from calm_core.store import storage
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DatasetFacts, Facts


def prepare_data(
    data: DataConfig, tokenizer: TokenizerConfig, output_uri: str, workers: int = 1
) -> Artifact[DatasetFacts]:
    """All steps on one machine, with as many processes as `workers`; the bytes do not depend on how many.

    The intermediate artifacts lie beside the dataset, in `<output_uri>.parts`. What a stopped run has finished of them
    is taken by the next one.

    Raises:
        CalmError: A step failed, or its process was killed.
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

    # A fork would inherit the threads of Arrow and of the object store's library in an unknown state.
    with ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else ExitStack() as pool:
        each = partial(_each, pool if isinstance(pool, ProcessPoolExecutor) else None)
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
    try:
        list(map(step, *arguments) if pool is None else pool.map(step, *arguments))
    except BrokenProcessPool:
        raise CalmError(
            "a preparing process was killed, perhaps for lack of memory; run the same command again (with fewer "
            "workers): finished partitions are kept"
        ) from None
