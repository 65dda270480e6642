"""Sources of text: which files there are, and the documents inside them.

A bad document is counted by reason and kept out: documents in = documents out + rejects + duplicates.
"""

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import IO, Any, Literal, cast

from pydantic import BaseModel, ConfigDict

from calm_core import storage
from calm_core.config import DataConfig
from calm_core.errors import SourceError

SUFFIXES = (".jsonl", ".txt")

_JSON_BYTES = 6  # JSON may spend this many bytes on one byte of text, as in \u0001
_OTHER_FIELDS = 1024  # room in a line for more than its text
_BUFFER_BYTES = 1 << 20

Reason = Literal[
    "broken_json", "not_utf8", "missing_field", "not_text", "empty", "too_large", "invalid_unicode", "empty_file"
]


class Piece(BaseModel):
    """A byte range of one source file; a .jsonl range owns the lines that start in it, a .txt file is never cut.

    `size` and `sha256` are the whole file's: a file that changes under the same name makes another piece.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    uri: str
    start: int
    end: int
    size: int
    sha256: str


class Partition(BaseModel):
    """A share of the sources that is prepared on its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    index: int
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.end - piece.start for piece in self.pieces)


@dataclass(frozen=True)
class Document:
    """A usable text, or the reason why there is none.

    Attributes:
        origin: "file:byte offset", for people.
        text: The document; empty when it was rejected.
        reason: Why it was rejected, None when it was not.
    """

    origin: str
    text: str = ""
    reason: Reason | None = None


def plan_partitions(config: DataConfig) -> list[dict[str, Any]]:
    """Cut the sources into `config.partitions` parts of nearly equal bytes, in the order of the sources.

    Returns:
        Partitions as plain JSON values, one for each item of a Kubeflow loop.

    Raises:
        SourceError: A source is missing, matches nothing, or has an unknown suffix.
    """
    if not config.sources:
        raise SourceError("data.sources is empty; name .jsonl or .txt files, e.g. --source 'texts/*.jsonl'")
    files = [
        (uri, storage.size(uri), storage.sha256_of(uri))
        for uri in dict.fromkeys(uri for source in config.sources for uri in _files_of(source))
    ]
    bounds = [sum(size for _, size, _ in files) * i / config.partitions for i in range(1, config.partitions)]
    pieces: list[list[Piece]] = [[] for _ in range(config.partitions)]
    offset = 0
    for uri, size, sha256 in files:
        cuts = [0, *sorted({round(b - offset) for b in bounds if offset < b < offset + size} - {0, size}), size]
        if PurePosixPath(uri).suffix == ".txt":
            cuts = [0, size]
        for start, end in pairwise(cuts):
            middle = offset + (start + end) / 2
            pieces[sum(b <= middle for b in bounds)].append(
                Piece(uri=uri, start=start, end=end, size=size, sha256=sha256)
            )
        offset += size
    return [Partition(index=i, pieces=tuple(p)).model_dump() for i, p in enumerate(pieces)]


def _files_of(source: str) -> list[str]:
    try:
        files = storage.glob(source)
    except (OSError, ValueError, ImportError) as error:  # fsspec's, e.g. for an unknown protocol
        raise SourceError(f"{source}: cannot be read ({error}); check data.sources (--source)") from None
    if not files and storage.exists(source):
        raise SourceError(f"{source}: is a folder; name its files, e.g. {storage.join(source, '*.jsonl')}")
    if not files:
        raise SourceError(f"{source}: no such file, and nothing matches; check data.sources (--source)")
    for uri in files:
        if PurePosixPath(uri).suffix not in SUFFIXES:
            raise SourceError(f"{uri}: unknown kind of source; {' and '.join(SUFFIXES)} files are read")
    return files


def read_documents(partition: Mapping[str, Any], config: DataConfig) -> Iterator[Document]:
    """All documents of a partition, rejected ones included, in the order of the sources.

    A changed file is noticed by its size: a hash would read the whole file again for each range of it. New content of
    the same size is therefore not noticed here; a fresh plan sees it, because a piece holds the file's hash.

    Raises:
        SourceError: A file has changed since it was planned, or is gone.
    """
    for piece in Partition.model_validate(partition).pieces:
        if not storage.exists(piece.uri) or storage.size(piece.uri) != piece.size:
            raise SourceError(f"{piece.uri}: changed or removed since the run was planned; run again")
        if piece.size == 0:
            yield Document(f"{piece.uri}:0", reason="empty_file")
            continue
        is_jsonl = PurePosixPath(piece.uri).suffix == ".jsonl"
        # A remote file of fsspec has no readline(limit), and finds line ends slowly.
        with storage.open_uri(piece.uri) as raw, io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER_BYTES) as file:
            parts = _lines(file, piece, config) if is_jsonl else _text_parts(file, config)
            for offset, data in parts:
                data = data if offset else data.removeprefix(codecs.BOM_UTF8)
                yield _document(f"{piece.uri}:{offset}", data, config, is_jsonl)


def _lines(file: IO[bytes], piece: Piece, config: DataConfig) -> Iterator[tuple[int, bytes]]:
    """The lines that start in the piece; of a line that is too long only the first bytes are kept in memory."""
    limit = _most_bytes(config, is_jsonl=True) + 1
    file.seek(max(piece.start - 1, 0))
    if piece.start > 0:
        _skip_line(file)
    while (offset := file.tell()) < piece.end and (line := file.readline(limit)):
        if len(line) == limit and not line.endswith(b"\n"):
            _skip_line(file)
        if line.strip() or len(line) == limit:
            yield offset, line


def _skip_line(file: IO[bytes]) -> None:
    while (part := file.readline(1 << 20)) and not part.endswith(b"\n"):
        pass


def _text_parts(file: IO[bytes], config: DataConfig) -> Iterator[tuple[int, bytes]]:
    """A text file whole, or cut at blank lines (else at a line's end) into parts of about the configured size.

    A line longer than a document may be is one part, of which only the first bytes are kept in memory.
    """
    size = min(config.txt_document_bytes, config.max_document_bytes)
    offset, rest = 0, b""
    while block := file.read(size):
        rest += block
        while len(rest) > size and (cut := _cut(rest, size)):
            yield offset, rest[:cut]
            offset, rest = offset + cut, rest[cut:]
        if len(rest) > _most_bytes(config, is_jsonl=False):
            yield offset, rest
            if b"\n" not in rest.lstrip():
                _skip_line(file)
            offset, rest = file.tell(), b""
    if rest:
        yield offset, rest


def _cut(data: bytes, size: int) -> int:
    """Where to cut: after the last blank line within `size` bytes, else after a line; 0 where there is no such place.

    Text is left on both sides, so that no part is blank.
    """
    first, last = len(data) - len(data.lstrip()), len(data.rstrip())

    def after(mark: bytes) -> int:
        place = data.rfind(mark, first, min(size, last))
        return place + len(mark) if place >= 0 else 0

    return max(after(b"\n\n"), after(b"\n\r\n")) or after(b"\n") or data.find(b"\n", max(size, first), last) + 1


def _most_bytes(config: DataConfig, is_jsonl: bool) -> int:
    """Bytes beyond which a line, or a part of a .txt file, is too large without being decoded."""
    return config.max_document_bytes * _JSON_BYTES + _OTHER_FIELDS if is_jsonl else config.max_document_bytes


def _document(origin: str, data: bytes, config: DataConfig, is_jsonl: bool) -> Document:
    if len(data) > _most_bytes(config, is_jsonl):
        return Document(origin, reason="too_large")
    try:
        text: Any = data.decode("utf-8")
    except UnicodeDecodeError:
        return Document(origin, reason="not_utf8")
    if is_jsonl:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            return Document(origin, reason="broken_json")
        if not isinstance(line, dict) or config.text_field not in line:
            return Document(origin, reason="missing_field")
        text = line[config.text_field]
    return Document(origin, reason=reason) if (reason := _why_unusable(text, config)) else Document(origin, text)


def _why_unusable(text: Any, config: DataConfig) -> Reason | None:
    if not isinstance(text, str):
        return "not_text"
    if not text.strip():
        return "empty"
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return "invalid_unicode"
    return "too_large" if size > config.max_document_bytes else None
