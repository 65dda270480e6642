"""The first step of preparing: the sources are found and cut into partitions."""

from collections.abc import Sequence

from calm_core.config import DataConfig
from calm_core.data.preparing.extension import Extension
from calm_core.data.preparing.progress import STAGE
from calm_core.data.sources.check import check_sources
from calm_core.data.sources.files import find_files
from calm_core.data.sources.partitions import Partition, partition_files
from calm_core.errors import ConfigError
from calm_core.store import storage
from calm_core.telemetry.progress import report, reported


@reported(STAGE, "finding the sources")
def plan_partitions(config: DataConfig, place: str, outputs: Sequence[str] = ()) -> list[Partition]:
    """Find the sources and cut them into `config.partitions` partitions of nearly equal bytes.

    With `config.extends`, only the sources that this dataset lacks.

    Args:
        config: Settings of the sources.
        place: URL of the folder in which the partitions' pieces are written, named by their content.
        outputs: Folders that are written, where they are known.

    Raises:
        SourceError: A source is missing, of an unknown kind, holds no text in its first records, or has changed since
            it was added to the dataset.
        ConfigError: A source lies in a folder that is written.
    """
    check_sources(config)
    files, first, extends = find_files(config), 0, ""
    written = tuple(storage.join(storage.absolute(output), "") for output in outputs)
    if inside := next((file.uri for file in files if file.uri.startswith(written)), None):
        raise ConfigError(f"{outputs[0]}: {inside}, a file of its own, is among data.sources; name another output_uri")
    storage.remove_partial(place)
    if extension := Extension.of(config):
        files, first = extension.files_to_read(files)
        extends = extension.parent.digest
    partitions = partition_files(files, config.partitions, place, first_index=first, extends=extends)
    report(STAGE, note=f"{len(files):,} file{'s' * (len(files) != 1)} in {len(partitions)} partitions")
    return partitions
