"""Sources of text: which files there are, how they are shared out, and the documents inside them.

A bad document is counted by reason and kept out: documents in = documents out + rejects + duplicates.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from calm_core.config import DataConfig
from calm_core.data.damage import is_damage
from calm_core.data.sources.formats import FORMATS, Document, Range, format_of
from calm_core.errors import ArtifactError, ConfigError, SourceError, first_line
from calm_core.store import storage
from calm_core.store.artifact import digest_of
from calm_core.store.facts import SourceFile

_FILES_AT_A_TIME = 16
_ENDLESS = 1 << 62


class Piece(BaseModel):
    """A byte range of a source file, whose documents are those that begin in it; compressed files are never cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: SourceFile
    start: int
    end: int


class Partition(BaseModel):
    """A share of the sources that is prepared on its own.

    Its pieces lie in a file named by their digest, so that a partition is small enough for a pipeline's parameter, and
    equal pieces are equal parameters: a cache key.

    Attributes:
        index: Place in the order of the sources.
        pieces_uri: The file of its pieces.
        num_bytes: Bytes of all its pieces.
        extends: Digest of the dataset that is extended, empty where there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    index: int
    pieces_uri: str
    num_bytes: int
    extends: str = ""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """A partition from a pipeline's parameter.

        Raises:
            ConfigError: It is none; the message names what is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"a partition of the plan is damaged ({place}: {first['msg']}); plan again") from None

    def pieces(self) -> list[Piece]:
        """The pieces, read and checked.

        Raises:
            ArtifactError: Their file is gone or damaged.
        """
        try:
            data = json.loads(storage.read(self.pieces_uri))
        except (FileNotFoundError, ValueError):
            raise ArtifactError(f"{self.pieces_uri}: the plan is missing or damaged; plan again") from None
        if f"{digest_of(data)}.json" != self.pieces_uri.rpartition("/")[2]:
            raise ArtifactError(f"{self.pieces_uri}: the plan is damaged; delete the file and plan again")
        return _PIECES.validate_python(data)


_PIECES = TypeAdapter(list[Piece])


def find_files(config: DataConfig) -> list[SourceFile]:
    """All files of the sources, each once, in the order of the sources.

    Raises:
        SourceError: A source is missing, matches nothing, or has an unknown suffix.
    """
    if not config.sources:
        raise SourceError("data.sources is empty; name .jsonl or .txt files, e.g. texts/*.jsonl")
    uris = list(dict.fromkeys(uri for source in config.sources for uri in _files_of(source)))
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        return list(pool.map(_source_file, uris))


def _source_file(uri: str) -> SourceFile:
    try:
        return SourceFile(uri=uri, size=storage.size(uri), digest=storage.digest(uri))
    except FileNotFoundError:
        raise SourceError(f"{uri}: is missing; restore it, or leave it out of data.sources") from None


def partition_files(
    files: list[SourceFile], number: int, place: str, *, first_index: int = 0, extends: str = ""
) -> list[Partition]:
    """Cut files into parts of nearly equal bytes, in their order, and write each part's pieces.

    Args:
        files: The files.
        number: Partitions; some may be empty.
        place: URL of the folder for the pieces.
        first_index: Index of the first partition.
        extends: Digest of the dataset that is extended.
    """
    bounds = [sum(file.size for file in files) * i / number for i in range(1, number)]
    shares: list[list[Piece]] = [[] for _ in range(number)]
    offset = 0
    for file in files:
        cuts = [0, file.size]
        if (format_ := format_of(file.uri)) and format_.splits:
            between = bounds[bisect_right(bounds, offset) : bisect_left(bounds, offset + file.size)]
            cuts = [0, *sorted({round(bound - offset) for bound in between} - {0, file.size}), file.size]
        for start, end in pairwise(cuts):
            middle = offset + (start + end) / 2
            shares[bisect_right(bounds, middle)].append(Piece(file=file, start=start, end=end))
        offset += file.size
    return [_written(pieces, first_index + i, place, extends) for i, pieces in enumerate(shares)]


def _written(pieces: list[Piece], index: int, place: str, extends: str) -> Partition:
    data = _PIECES.dump_python(pieces, mode="json")
    uri = storage.join(place, f"{digest_of(data)}.json")
    storage.write(uri, json.dumps(data).encode())
    size = sum(piece.end - piece.start for piece in pieces)
    return Partition(index=index, pieces_uri=uri, num_bytes=size, extends=extends)


def _files_of(source: str) -> Iterator[str]:
    found = storage.glob(source)
    if not found:
        raise SourceError(f"{source}: no such file, and nothing matches; check data.sources")
    files = 0
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        are_folders = list(pool.map(storage.is_folder, found))
    for uri, is_folder in zip(found, are_folders, strict=True):
        for file in _files_of_folder(uri) if is_folder else [uri]:
            if format_of(file) is None or (file.endswith(".arrow") and file == uri):
                raise SourceError(
                    f"{file}: unknown kind of source; {', '.join(FORMATS)} files are read, and folders that "
                    "datasets has saved"
                )
            files += 1
            yield file
    if not files:
        raise SourceError(f"{source}: is a folder; name its files, e.g. {storage.join(source, '*.jsonl')}")


def _files_of_folder(uri: str) -> list[str]:
    """The data files of a folder that Hugging Face's datasets has saved; none of any other folder."""
    if storage.exists(storage.join(uri, "dataset_dict.json")):
        splits = json.loads(storage.read(storage.join(uri, "dataset_dict.json")))["splits"]
        names = ", ".join(storage.join(uri, split) for split in splits)
        raise SourceError(f"{uri}: holds several splits; name those to read: {names}")
    if not storage.exists(storage.join(uri, "state.json")):
        return []
    try:
        state = json.loads(storage.read(storage.join(uri, "state.json")))
    except ValueError:
        raise SourceError(f"{storage.join(uri, 'state.json')}: is no JSON; save the dataset again") from None
    if not isinstance(state, dict) or "_data_files" not in state:
        return []
    if state.get("_indices_data_files"):
        raise SourceError(f"{uri}: holds a selection of rows; call its flatten_indices() and save it again")
    return [storage.join(uri, file["filename"]) for file in state["_data_files"]]


def read_documents(partition: Partition, config: DataConfig) -> Iterator[Document]:
    """All documents of a partition, rejected ones included, in the order of the sources.

    A changed file is noticed by its tag in an object store, elsewhere by its size: a hash would read the whole file
    again for each range of it. A fresh plan sees new content of the same size: a piece holds the file's digest.

    Raises:
        SourceError: A file has changed since it was planned, is gone, or is damaged.
    """
    for piece in partition.pieces():
        uri, format_ = piece.file.uri, format_of(piece.file.uri)
        if format_ is None:
            raise ConfigError(f"{uri}: was planned by another version of the code; plan again")
        same = storage.exists(uri) and storage.size(uri) == piece.file.size
        if not same or storage.tag(uri) not in ("", piece.file.digest):
            raise SourceError(f"{uri}: changed or removed since the run was planned; run again")
        if piece.file.size == 0:
            yield Document(f"{uri}:0", reason="empty_file")
            continue
        with storage.open_uri(uri) as file:
            span = Range(piece.start, piece.end)
            content: IO[bytes] = file
            try:
                if format_.unpack:
                    content, span = format_.unpack(file), Range(0, _ENDLESS)
                yield from format_.read(content, span, uri, config)
            except Exception as error:  # each format has its own kinds of damage
                if not is_damage(error):
                    raise
                if config.damaged_files == "fail":
                    raise SourceError(
                        f"{uri}: is truncated or damaged ({first_line(error)}); mend it, leave it out, or set "
                        "data.damaged_files=reject to keep what comes before the damage"
                    ) from None
                yield Document(f"{uri}:damage", reason="damaged_file")
