"""Partitions: how the files of the sources are shared out."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from calm_core.data.sources.content import FoundFile, write_blocks
from calm_core.data.sources.formats import format_of
from calm_core.errors import ArtifactError, ConfigError
from calm_core.store import storage
from calm_core.store.artifact import digest_of
from calm_core.store.facts import Record, SourceFile

_PORTION_BYTES = 32 << 20  # seconds of work for a process
_MOST_PORTIONS = 1024  # of a partition: each is an artifact until all are finished
_OPENING_BYTES = 1 << 18  # that are read in the time that it takes to open a file


class Piece(Record):
    """A byte range of a source file, whose documents are those that begin in it; compressed files are never cut."""

    file: SourceFile
    start: int
    end: int


class Partition(Record):
    """A share of the sources that is prepared on its own.

    Its pieces lie in a file named by their digest, so that a partition is small enough for a pipeline's parameter, and
    equal pieces are equal parameters: a cache key.

    Attributes:
        index: Place in the order of the sources.
        pieces_uri: The file of its pieces.
        num_bytes: Bytes of all its pieces.
        extends: Digest of the dataset that is extended, empty where there is none.
    """

    index: int
    pieces_uri: str
    num_bytes: int
    extends: str = ""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """A partition from plain JSON values, as a pipeline hands it on.

        Raises:
            ConfigError: They are no partition.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["partition", *map(str, first["loc"])])
            raise ConfigError(f"{place}: {first['msg']}; hand on what the plan says, unchanged") from None

    @property
    def plan_uri(self) -> str:
        """The folder of the plan."""
        return self.pieces_uri.rpartition("/")[0]

    def pieces(self) -> list[Piece]:
        """The pieces, read and checked.

        Raises:
            ArtifactError: Their file is gone or damaged.
        """
        return _PIECES.validate_python(_read(self.pieces_uri))

    def portions(self) -> Sequence["Partition"]:
        """The partition as portions that are prepared side by side, each kept once it is finished.

        A portion is a run of pieces; those that are larger than one are cut. What it holds depends on the partition's
        pieces alone. A small partition is its only portion.

        Raises:
            ArtifactError: The file of the pieces is gone or damaged.
        """
        size = max(_PORTION_BYTES, -(-self.num_bytes // _MOST_PORTIONS))
        runs: list[list[Piece]] = [[]]
        room = size
        for piece in self.pieces():
            for start, end in pairwise([*_steps(piece, size), piece.end]):
                if room <= 0:
                    runs.append([])
                    room = size
                runs[-1].append(piece.model_copy(update={"start": start, "end": end}))
                room -= max(end - start, _OPENING_BYTES)
        if len(runs) == 1:
            return [self]
        return [Portion(**self.model_dump(), number=number, held=run) for number, run in enumerate(runs)]


class Portion(Partition):
    """A part of a partition.

    Attributes:
        number: Place in the partition.
        held: Its pieces.
    """

    number: int
    held: list[Piece]

    def pieces(self) -> list[Piece]:
        """Its pieces."""
        return self.held


_PIECES = TypeAdapter(list[Piece])


def partition_files(
    files: list[FoundFile], number: int, place: str, *, first_index: int = 0, extends: str = ""
) -> list[Partition]:
    """Cut files into parts of nearly equal bytes, in their order; write each part's pieces, and each file's blocks.

    Args:
        files: The files.
        number: Partitions; some may be empty.
        place: URL of the folder for the pieces.
        first_index: Index of the first partition.
        extends: Digest of the dataset that is extended.
    """
    # All files are thought of as one long file. Partition i ends at bounds[i] of it, and the last one at its end.
    bounds = [sum(file.size for file in files) * i / number for i in range(1, number)]
    shares: list[list[Piece]] = [[] for _ in range(number)]
    offset = 0  # where the next file begins in the long one
    for file in files:
        for start, end in pairwise(_cuts(file, offset, bounds)):
            middle = offset + (start + end) / 2  # a piece that is not cut at a bound goes where most of it lies
            shares[bisect_right(bounds, middle)].append(Piece(file=file.as_planned(), start=start, end=end))
        offset += file.size
    for file in {file.digest: file for file in files}.values():
        write_blocks(file, place)
    return [_written(pieces, first_index + i, place, extends) for i, pieces in enumerate(shares)]


def _steps(piece: Piece, size: int) -> range | list[int]:
    """Where the parts of a piece begin that portions of this size take."""
    format_ = format_of(piece.file.uri)
    splits = format_ is not None and format_.splits and piece.start < piece.end
    return range(piece.start, piece.end, size) if splits else [piece.start]


def _cuts(file: SourceFile, offset: int, bounds: list[float]) -> list[int]:
    """Where a file begins, is cut, and ends, in bytes of the file."""
    format_ = format_of(file.uri)
    if format_ is None or not format_.splits:
        return [0, file.size]
    inside = bounds[bisect_right(bounds, offset) : bisect_left(bounds, offset + file.size)]
    return [0, *sorted({round(bound - offset) for bound in inside} - {0, file.size}), file.size]


def write_plan(partitions: list[Partition], place: str) -> str:
    """Write all partitions into one file, for tasks that need all of them: as parameters they would be too long.

    Args:
        partitions: The partitions.
        place: URL of the file's folder.

    Returns:
        URI of the file, which names its content.
    """
    return _write([partition.model_dump() for partition in partitions], place)


def read_plan(uri: str) -> list[Partition]:
    """The partitions that `write_plan` has written.

    Raises:
        ArtifactError: Their file is gone or damaged.
    """
    return [Partition.parse(partition) for partition in _read(uri)]


def _write(data: list[Any], place: str) -> str:
    uri = storage.join(place, f"{digest_of(data)}.json")
    storage.write(uri, json.dumps(data).encode())
    return uri


def _read(uri: str) -> list[Any]:
    try:
        data: list[Any] = json.loads(storage.read(uri))
    except (FileNotFoundError, ValueError):
        raise ArtifactError(f"{uri}: the plan is missing or damaged; plan again") from None
    if f"{digest_of(data)}.json" != uri.rpartition("/")[2]:
        raise ArtifactError(f"{uri}: the plan is damaged; delete the file and plan again")
    return data


def _written(pieces: list[Piece], index: int, place: str, extends: str) -> Partition:
    uri = _write(_PIECES.dump_python(pieces, mode="json"), place)
    size = sum(piece.end - piece.start for piece in pieces)
    return Partition(index=index, pieces_uri=uri, num_bytes=size, extends=extends)
