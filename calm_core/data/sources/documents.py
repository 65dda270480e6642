"""The documents of a partition.

A bad document is counted by reason and kept out: documents in = documents out + rejects + duplicates.
"""

from collections.abc import Iterator
from typing import IO

from calm_core.config import DataConfig
from calm_core.data.damage import is_damage, is_unsupported
from calm_core.data.sources.content import open_planned
from calm_core.data.sources.formats import Document, Range, Reader, format_of
from calm_core.data.sources.partitions import Partition
from calm_core.errors import ConfigError, SourceError, first_line
from calm_core.shown import visible
from calm_core.store.facts import SourceFile

ENDLESS = 1 << 62  # the end of a range that has none


def read_documents(partition: Partition, config: DataConfig) -> Iterator[Document]:
    """All documents of a partition, rejected ones included, in the order of the sources.

    Every byte that is read has been compared with the plan (see `content`).

    Raises:
        SourceError: A file has changed since it was planned, is gone, or is damaged.
    """
    for piece in partition.pieces():
        with open_planned(piece.file, partition.plan_uri) as file:
            yield from documents_in(file, piece.file, Range(piece.start, piece.end), config)


def documents_in(
    file: IO[bytes], source: SourceFile, span: Range, config: DataConfig, read: Reader | None = None
) -> Iterator[Document]:
    """The documents of an open file that begin in a range of it.

    Args:
        file: The file.
        source: What it is.
        span: The range.
        config: Settings of the sources.
        read: What reads them; unset, the reader of its format.

    Raises:
        SourceError: The file is damaged, or of a form that is not read.
    """
    uri, format_ = source.uri, format_of(source.uri)
    name = visible(uri)  # for the origins of documents
    if format_ is None:
        raise ConfigError(f"{uri}: was planned by another version of the code; plan again")
    if source.size == 0:
        yield Document(name, reason="empty_file")
        return
    try:
        if format_.unpack:
            file, span = format_.unpack(file, uri), Range(0, ENDLESS)
        yield from (read or format_.read)(file, span, name, config)
    except MemoryError as error:  # how much there is must not decide what a file holds
        raise SourceError(f"{uri}: needs more memory than there is ({first_line(error)})") from None
    except Exception as error:  # each format has its own kinds of damage
        if is_unsupported(error):
            raise SourceError(
                f"{uri}: is of a form that is not read ({first_line(error)}); write it again, e.g. as .jsonl"
            ) from None
        if not is_damage(error):
            raise
        if config.damaged_files == "fail":
            raise SourceError(
                f"{uri}: is truncated or damaged ({first_line(error)}); mend it, leave it out, or set "
                "data.damaged_files=reject to keep what comes before the damage"
            ) from None
        yield Document(name, reason="damaged_file")
