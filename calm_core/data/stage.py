"""The stage `prepare`: all steps of preparing, on this machine."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from calm_core.config import DataConfig, TokenizerConfig
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.merge import Prepared, dataset_settings, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partitions
from calm_core.data.preparing.step import PORTIONS
from calm_core.data.preparing.tokenize import tokenize_partitions
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.data.preparing.workers import Workers
from calm_core.data.sources.files import find_files
from calm_core.errors import ArtifactError, ConfigError
from calm_core.store import storage
from calm_core.store.artifact import UNFINISHED_NAME, Artifact, ArtifactWriter, is_artifact
from calm_core.store.facts import DatasetFacts, TokenizerFacts
from calm_core.store.lock import FolderLock

_PLAN = "plan"
_PARTS = re.compile(r"(?:scan|shards)-\d{5,}|duplicates|tokenizer")
_UNJOINED = re.compile(rf"(?:scan|shards)-\d{{5,}}{re.escape(PORTIONS)}")
_PARTS_AT_A_TIME = 16


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

        with Workers(workers) as processes:
            scan_partitions(partitions, data, uris("scan"), processes)
            found = find_duplicates(uris("scan"), data, storage.join(place, "duplicates")).uri
            trained = train_tokenizer(partitions, tokenizer, data, storage.join(place, "tokenizer"))
            writer(tokenizer=trained.digest).check()  # its parts may no longer have told
            tokenize_partitions(partitions, data, trained.uri, found, uris("shards"), processes)
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
    others = sorted(name for name in names if name != _PLAN and name not in parts and not _UNJOINED.fullmatch(name))
    if UNFINISHED_NAME not in names and (unusable or others or names == [_PLAN]):
        raise ArtifactError(
            f"{place}: holds other files ({(unusable or others or names)[0]}), and the parts of the dataset go there; "
            "name another output, or delete the folder"
        )
    storage.write(storage.join(place, UNFINISHED_NAME), b"parts")
    for name in unusable:
        storage.remove_folder(storage.join(place, name))
