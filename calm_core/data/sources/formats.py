"""Formats of sources: how the documents of a file, or of a byte range of it, are read.

A reader yields every document that begins in its range, bad ones with their reason, in order and in bounded memory.
"""

import codecs
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from calm_core.config import DataConfig

Reason = Literal[
    "broken_json",
    "not_utf8",
    "missing_field",
    "not_text",
    "empty",
    "too_small",
    "too_large",
    "invalid_unicode",
    "empty_file",
    "damaged_file",
]

_JSON_BYTES = 6  # JSON may spend this many bytes on one byte of text, as in \\u0001
_OTHER_FIELDS = 16 << 20  # room in a line for more than its text
_BATCH_BYTES = 8 << 20  # of a column, decoded at a time
_BLANK_LINE, _LINE_END = re.compile(rb"\n\r?\n"), re.compile(rb"\n")
_LONGEST_MARK = 3
_UNPACKED_BYTES = 4096  # asked for at a time; before damage, Arrow gives no part of what was asked


@dataclass(frozen=True, slots=True)
class Document:
    """A usable text, or the reason why there is none.

    Attributes:
        origin: "file:byte offset" or "file:row", for people; the offset in a compressed file counts unpacked bytes.
        text: The document; empty when it was rejected.
        reason: Why it was rejected, None when it was not.
        normalized: Whether Unicode normalisation has changed it.
    """

    origin: str
    text: str = ""
    reason: Reason | None = None
    normalized: bool = False


class Range(NamedTuple):
    """The bytes of a file that a reader owns: it reads the documents that begin in [start, end)."""

    start: int
    end: int


Reader = Callable[[IO[bytes], Range, str, DataConfig], Iterator[Document]]


def read_jsonl(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """One JSON object a line; blank lines are none. Of a line that is too long only the first bytes are kept."""
    limit = config.max_document_bytes * _JSON_BYTES + _OTHER_FIELDS
    offset = span.start
    if span.start:
        file.seek(span.start - 1)
        offset += _skip_line(file) - 1
    while offset < span.end and (line := file.readline(limit + 1)):
        origin, is_long = f"{uri}:{offset}", len(line) > limit and not line.endswith(b"\n")
        offset += len(line)
        if is_long:
            offset += _skip_line(file)
            yield Document(origin, reason="too_large")
        elif line.strip():
            yield _of_json(origin, line if offset > len(line) else line.removeprefix(codecs.BOM_UTF8), config)


def _skip_line(file: IO[bytes]) -> int:
    skipped = 0
    while part := file.readline(1 << 20):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def read_txt(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """A text file whole, or cut at blank lines (else at a line's end) into documents of about the configured size.

    A document begins at the first blank line's end in each block of that size, so where the cuts are depends on the
    text alone, not on the range.
    """
    size = max(1, min(config.txt_document_bytes, config.max_document_bytes // 2))
    start = span.start // size * size
    file.seek(max(start - _LONGEST_MARK, 0))
    before = file.read(start - file.tell())
    begun: int | None = None
    text = bytearray()
    while block := file.read(size):
        cut = 0 if start == 0 else _first_cut(before, block)
        if cut is not None:
            if begun is not None:
                yield from _of_part(f"{uri}:{begun}", text + block[:cut], config)
            if start + cut >= span.end:
                return
            begun, text = (start + cut if start + cut >= span.start else None), bytearray()
        if begun is not None and len(text) <= config.max_document_bytes:  # what is longer is not kept whole
            text += block[cut or 0 :]
        start, before = start + len(block), block[-_LONGEST_MARK:]
    if begun is not None:
        yield from _of_part(f"{uri}:{begun}", text, config)


def _first_cut(before: bytes, block: bytes) -> int | None:
    """Where the first blank line ends in a block, else the first line; marks may begin in the bytes before it."""
    for mark in (_BLANK_LINE, _LINE_END):
        for match in mark.finditer(before + block):
            if 0 <= (place := match.end() - len(before)) < len(block):
                return place
    return None


def _of_part(origin: str, data: bytes | bytearray, config: DataConfig) -> Iterator[Document]:
    if origin.endswith(":0"):
        data = data.removeprefix(codecs.BOM_UTF8)
    if len(data) > config.max_document_bytes:  # the rest of it was not kept
        yield Document(origin, reason="too_large")
    elif data.strip():
        yield _of_utf8(origin, data, config)


def read_parquet(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """A column of strings; a range owns the row groups that begin in it."""
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
    except pa.ArrowInvalid:
        if span.start:  # the first range says for all of them that the file cannot be opened
            return
        raise
    first_row = 0
    for number in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        offset = min(c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in columns)
        if span.start <= offset < span.end:
            if config.text_field not in parquet.schema_arrow.names:
                for row in range(first_row, first_row + group.num_rows):
                    yield Document(f"{uri}:row {row}", reason="missing_field")
            else:
                row_bytes = sum(c.total_uncompressed_size for c in columns) // max(group.num_rows, 1)
                rows = max(1, _BATCH_BYTES // max(row_bytes, 1))
                batches = parquet.iter_batches(rows, row_groups=[number], columns=[config.text_field])
                yield from _of_batches(batches, uri, first_row, config)
        first_row += group.num_rows


def read_arrow(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """Record batches in Arrow's stream format, as Hugging Face's datasets saves them."""
    yield from _of_batches(pa.ipc.open_stream(file), uri, 0, config)


def _of_batches(batches: Any, uri: str, first_row: int, config: DataConfig) -> Iterator[Document]:
    for batch in batches:
        place = batch.schema.get_field_index(config.text_field)
        column = None if place < 0 else batch.column(place)
        if column is not None and pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        is_text = column is not None and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))
        if column is not None and pa.types.is_string_view(column.type):
            column, is_text = column.cast(pa.large_string()), True
        # As bytes: a string column of a careless writer may hold something else than UTF-8.
        values: Any = [None] * len(batch)
        if column is not None and is_text:
            values = column.cast(pa.large_binary())
            values.validate(full=True)  # a wrong offset in a damaged file would be followed anywhere
        for row, value in enumerate(values, first_row):
            origin = f"{uri}:row {row}"
            data = value.as_py() if value is not None else None
            if column is None:
                yield Document(origin, reason="missing_field")
            elif data is None:
                yield Document(origin, reason="not_text")
            else:
                yield _of_utf8(origin, data, config)
        first_row += len(batch)


def _of_json(origin: str, data: bytes, config: DataConfig) -> Document:
    try:
        line = _parsed(data)
    except UnicodeDecodeError:
        return Document(origin, reason="not_utf8")
    except (ValueError, RecursionError):
        return Document(origin, reason="broken_json")
    if not isinstance(line, dict) or config.text_field not in line:
        return Document(origin, reason="missing_field")
    text = line[config.text_field]
    return _of_text(origin, text, config) if isinstance(text, str) else Document(origin, reason="not_text")


def _parsed(data: bytes) -> Any:
    """A JSON value, by a fast parser; what that one refuses, Python's own takes or gives the reason for."""
    try:
        return from_json(data, cache_strings="none")
    except ValueError:
        return json.loads(data.decode("utf-8"))


def _of_utf8(origin: str, data: bytes | bytearray, config: DataConfig) -> Document:
    if len(data) > config.max_document_bytes and config.unicode_normalization == "none":
        return Document(origin, reason="too_large")
    try:
        return _of_text(origin, data.decode("utf-8"), config)
    except UnicodeDecodeError:
        return Document(origin, reason="not_utf8")


def _of_text(origin: str, text: str, config: DataConfig) -> Document:
    original = text
    if config.unicode_normalization != "none":
        text = unicodedata.normalize(config.unicode_normalization, text)
    reason = _why_unusable(text, config)
    return Document(origin, reason=reason) if reason else Document(origin, text, normalized=text != original)


def _why_unusable(text: str, config: DataConfig) -> Reason | None:
    if not text or text.isspace():
        return "empty"
    try:
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return "invalid_unicode"
    if size > config.max_document_bytes:
        return "too_large"
    return "too_small" if size < config.min_document_bytes else None


def unpacked(compression: str) -> Callable[[IO[bytes]], IO[bytes]]:
    """What opens the content of a compressed file as a stream; several compressed streams may follow each other."""
    return lambda file: io.BufferedReader(pa.CompressedInputStream(file, compression), _UNPACKED_BYTES)


class Format(NamedTuple):
    """How files with a suffix are read.

    Attributes:
        read: The reader.
        splits: Whether a byte range can be read alone.
        unpack: What opens the content of a compressed file, None where it is not compressed.
    """

    read: Reader
    splits: bool
    unpack: Callable[[IO[bytes]], IO[bytes]] | None = None


FORMATS = {
    ".jsonl": Format(read_jsonl, splits=True),
    ".jsonl.gz": Format(read_jsonl, splits=False, unpack=unpacked("gzip")),
    ".jsonl.zst": Format(read_jsonl, splits=False, unpack=unpacked("zstd")),
    ".parquet": Format(read_parquet, splits=True),
    ".txt": Format(read_txt, splits=True),
}
ARROW = Format(read_arrow, splits=False)
"""The files of a folder that datasets has saved; alone they are no source, since the folder says which belong to it."""


def format_of(uri: str) -> Format | None:
    """The format that a file's suffix names, if any."""
    if uri.endswith(".arrow"):
        return ARROW
    return next((format_ for suffix, format_ in FORMATS.items() if uri.endswith(suffix)), None)
