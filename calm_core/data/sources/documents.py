"""The documents of a partition.

A bad document is counted by reason and kept out: documents in = documents out + rejects + duplicates.
"""

from collections.abc import Iterator
from typing import IO

from calm_core.config import DataConfig
from calm_core.data.damage import is_damage, is_unsupported
from calm_core.data.sources.content import open_planned
from calm_core.data.sources.formats import Document, Range, format_of
from calm_core.data.sources.partitions import Partition
from calm_core.errors import ConfigError, SourceError, first_line
from calm_core.shown import visible

_ENDLESS = 1 << 62  # the end of a range that has none


def read_documents(partition: Partition, config: DataConfig) -> Iterator[Document]:
    """All documents of a partition, rejected ones included, in the order of the sources.

    Every byte that is read has been compared with the plan (see `content`).

    Raises:
        SourceError: A file has changed since it was planned, is gone, or is damaged.
    """
    for piece in partition.pieces():
        uri, format_ = piece.file.uri, format_of(piece.file.uri)
        name = visible(uri)  # for the origins of documents
        if format_ is None:
            raise ConfigError(f"{uri}: was planned by another version of the code; plan again")
        with open_planned(piece.file, partition.plan_uri) as file:
            if piece.file.size == 0:
                yield Document(f"{name}:0", reason="empty_file")
                continue
            span = Range(piece.start, piece.end)
            content: IO[bytes] = file
            try:
                if format_.unpack:
                    content, span = format_.unpack(file, uri), Range(0, _ENDLESS)
                yield from format_.read(content, span, name, config)
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
                yield Document(f"{name}:damage", reason="damaged_file")
