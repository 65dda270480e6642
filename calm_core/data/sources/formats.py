"""Formats of sources: how the documents of a file, or of a byte range of it, are read.

A reader yields every document that begins in its range, bad ones with their reason, in order and in bounded memory.
"""

import codecs
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import IO, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from calm_core.config import DataConfig
from calm_core.data.damage import is_damage
from calm_core.data.sources.arrow_messages import Bounded, has_compressed_batches
from calm_core.data.sources.parquet_pages import page_sizes
from calm_core.data.sources.unpacking import Unpack, Unpacked, unpack_gzip, unpack_zstd
from calm_core.errors import SourceError
from calm_core.shown import listed, shortened

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
_MOST_VALUES = 2_000_000  # in a line; each takes up to 150 bytes of memory
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BATCH_BYTES, _MOST_ROWS = 64 << 20, 1 << 13  # of a column, decoded at a time
_MOST_IN_FOOTER = 1 << 18  # row groups, or columns, of a Parquet file
_BLANK_LINE, _LINE_END = re.compile(rb"\n\r?\n"), re.compile(rb"\n")
_LONGEST_MARK = 3
_SHOWN_FIELDS = 12


@dataclass(frozen=True, slots=True)
class Document:
    """A usable text, or the reason why there is none.

    Attributes:
        origin: "file, line 17", for people; in the later parts of a file that is cut "file, byte 12,345", in columns
            "file, row 0".
        text: The document; empty when it was rejected.
        reason: Why it was rejected, None when it was not.
        detail: What there is instead, for people; empty where the reason says all.
        normalized: Whether Unicode normalisation has changed it.
    """

    origin: str
    text: str = ""
    reason: Reason | None = None
    detail: str = ""
    normalized: bool = False

    @property
    def told(self) -> str:
        """Where a rejected one is, and why."""
        return f"{self.origin}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


class Range(NamedTuple):
    """The bytes of a file that a reader owns: it reads the documents that begin in [start, end)."""

    start: int
    end: int


Reader = Callable[[IO[bytes], Range, str, DataConfig], Iterator[Document]]


def read_jsonl(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """One JSON object a line; blank lines are none. Of a line that is too long only the first bytes are kept."""
    limit = _longest(config)
    offset = span.start
    if span.start:
        file.seek(span.start - 1)
        offset += _skip_line(file) - 1
    number = 0
    while offset < span.end and (line := file.readline(limit + 1)):
        number += 1
        origin = f"{uri}, byte {offset:,}" if span.start else f"{uri}, line {number:,}"
        is_long = len(line) > limit and not line.endswith(b"\n")
        offset += len(line)
        if is_long:
            offset += _skip_line(file)
            yield Document(origin, reason="too_large")
        elif line.strip():
            yield _of_json(origin, line if offset > len(line) else line.removeprefix(codecs.BOM_UTF8), config)


def _longest(config: DataConfig) -> int:
    """The bytes that a usable document may take in a file."""
    return config.max_document_bytes * _JSON_BYTES + _OTHER_FIELDS


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
    text alone, not on the range. UTF-16 is recognised by its mark: its later parts may well look like UTF-8.
    """
    file.seek(0)
    if file.read(len(codecs.BOM_UTF16)) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        if span.start == 0:
            yield Document(f"{uri}, line 1", reason="not_utf8", detail="it is UTF-16")
        return
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
                yield from _of_part(uri, begun, text + block[:cut], config)
            if start + cut >= span.end:
                return
            begun, text = (start + cut if start + cut >= span.start else None), bytearray()
        if begun is not None and len(text) <= config.max_document_bytes:  # what is longer is not kept whole
            text += block[cut or 0 :]
        start, before = start + len(block), block[-_LONGEST_MARK:]
    if begun is not None:
        yield from _of_part(uri, begun, text, config)


def _first_cut(before: bytes, block: bytes) -> int | None:
    """Where the first blank line ends in a block, else the first line; marks may begin in the bytes before it."""
    for mark in (_BLANK_LINE, _LINE_END):
        for match in mark.finditer(before + block):
            if 0 <= (place := match.end() - len(before)) < len(block):
                return place
    return None


def _of_part(uri: str, start: int, data: bytes | bytearray, config: DataConfig) -> Iterator[Document]:
    origin = f"{uri}, byte {start:,}" if start else f"{uri}, line 1"
    if not start:
        data = data.removeprefix(codecs.BOM_UTF8)
    if len(data) > config.max_document_bytes:  # the rest of it was not kept
        yield Document(origin, reason="too_large")
    elif data.strip():
        yield _of_utf8(origin, data, config)


def read_parquet(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """A column of strings; a range owns the row groups that begin in it."""
    unpacked = Unpacked(file, uri)
    try:
        parquet = pq.ParquetFile(
            file,
            pre_buffer=False,
            buffer_size=1 << 20,
            thrift_container_size_limit=_MOST_IN_FOOTER,
            page_checksum_verification=True,
        )
        schema, metadata = parquet.schema_arrow, parquet.metadata
        if metadata.num_rows != sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)):
            raise pa.ArrowInvalid("the row groups do not hold as many rows as the file says")
    except Exception as error:  # Arrow has several kinds for damage
        if span.start and is_damage(error):  # the first range says for all of them that the file cannot be opened
            return
        raise
    unpacked.add_rows(metadata.num_rows)
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        offset = min(
            (c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in columns), default=0
        )
        if span.start <= min(max(offset, 0), unpacked.size - 1) < span.end:  # what lies nowhere is damage of one range
            if lack := why_no_column(schema, config):
                reason, detail = lack
                rows = range(first_row, first_row + group.num_rows)
                yield from (Document(f"{uri}, row {row:,}", reason=reason, detail=detail) for row in rows)
            else:
                name = config.text_field
                chunks = [c for c in columns if c.path_in_schema == name or c.path_in_schema.startswith(f"{name}.")]
                at_a_time = _rows_at_a_time(file, uri, chunks, config, schema.field(name).type)
                batches = parquet.iter_batches(at_a_time, row_groups=[number], columns=[name])
                yield from _of_batches(batches, uri, first_row, config, unpacked)
        first_row += group.num_rows


def why_no_column(schema: pa.Schema, config: DataConfig) -> tuple[Reason, str] | None:
    """Why a table has no column of text with the name that is asked for, and what there is instead; None where it has.

    Raises:
        pyarrow.ArrowInvalid: It has several.
    """
    places = schema.get_all_field_indices(config.text_field)
    if len(places) > 1:
        raise pa.ArrowInvalid(f"has {len(places)} columns with the name {config.text_field}")
    if not places:
        return "missing_field", told_fields(schema.names, [field.name for field in schema if _is_text(field.type)])
    kind = schema.field(places[0]).type
    return None if _is_text(kind) else ("not_text", f"it holds {_told_column(kind)}")


def told_fields(names: Sequence[str], texts: Sequence[str]) -> str:
    """The fields or columns that there are, and which of them is likely to be the text.

    Args:
        names: All of them.
        texts: Those that hold text, the likeliest first.
    """
    told = listed(names, _SHOWN_FIELDS, limit=40) or "no fields"
    return f"it has {told}" + (f"; {shortened(texts[0], 40)} looks like the text" if texts else "")


def _told_column(kind: pa.DataType) -> str:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes; write it as a column of strings"
    if pa.types.is_nested(kind):
        return "lists or records; write their text into a column of its own"
    return f"{kind}, not strings"


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _rows_at_a_time(
    file: IO[bytes], uri: str, chunks: list[pq.ColumnChunkMetaData], config: DataConfig, kind: pa.DataType
) -> int:
    """How many rows of a column Arrow may decode at a time; no value is larger than the largest page."""
    sizes = [size for chunk in chunks for size in page_sizes(file, uri, chunk, _longest(config))]
    if pa.types.is_dictionary(kind) and sum(sizes) <= _BATCH_BYTES:  # each batch has the whole dictionary, once
        return _MOST_ROWS
    return min(max(1, _BATCH_BYTES // max([1, *sizes])), _MOST_ROWS)


def read_arrow(file: IO[bytes], span: Range, uri: str, config: DataConfig) -> Iterator[Document]:
    """Record batches in Arrow's stream format, as Hugging Face's datasets saves them."""
    if has_compressed_batches(file):
        raise SourceError(f"{uri}: is compressed, as datasets never saves it; load the dataset and save it again")
    unpacked = Unpacked(file, uri)
    yield from _of_batches(pa.ipc.open_stream(Bounded(file)), uri, 0, config, unpacked)


def _of_batches(batches: Any, uri: str, first_row: int, config: DataConfig, unpacked: Unpacked) -> Iterator[Document]:
    for batch in batches:
        unpacked.add_rows(len(batch))
        lack = why_no_column(batch.schema, config)
        reason, detail = lack or ("not_text", "it is null")
        values = repeat(None, len(batch)) if lack else _bytes_of(batch.column(config.text_field))
        for row, value in enumerate(values, first_row):
            origin = f"{uri}, row {row:,}"
            if value is None:
                yield Document(origin, reason=reason, detail=detail)
            else:
                unpacked.add(len(value))
                yield _of_utf8(origin, value, config)
        first_row += len(batch)


def _bytes_of(column: Any) -> Iterator[pa.Buffer | None]:
    """The values of a column of text one by one, not copied: a text that many rows share must not be as many texts.

    As bytes: a string column of a careless writer may hold something else than UTF-8.
    """
    if pa.types.is_dictionary(column.type):
        texts = _as_bytes(column.dictionary)
        for index in column.indices.to_pylist():
            if index is not None and not 0 <= index < len(texts):
                raise pa.ArrowInvalid("a row has no text in the dictionary")
            yield None if index is None else texts[index].as_buffer()
    else:
        yield from (value.as_buffer() for value in _as_bytes(column))


def _as_bytes(column: Any) -> Any:
    values = column.cast(pa.binary_view() if pa.types.is_string_view(column.type) else pa.large_binary())
    values.validate(full=True)  # a wrong offset in a damaged file would be followed anywhere
    return values


def _of_json(origin: str, data: bytes, config: DataConfig) -> Document:
    if _has_too_many_values(data):
        return Document(origin, reason="too_large")
    try:
        line = _parsed(data)
        if isinstance(line, dict) and _repeats(config.text_field, data):
            return Document(origin, reason="broken_json")
    except UnicodeDecodeError:
        return Document(origin, reason="not_utf8", detail=_told_encoding(data))
    except (ValueError, RecursionError):
        return Document(origin, reason="broken_json", detail=_told_broken(data.strip()))
    if not isinstance(line, dict):
        detail = f"it is {_TOLD_JSON[type(line)]}; write one object a line"
        return Document(origin, reason="missing_field", detail=detail)
    if config.text_field not in line:
        return Document(origin, reason="missing_field", detail=_told_object(line, config.text_field))
    text = line[config.text_field]
    if not isinstance(text, str):
        return Document(origin, reason="not_text", detail=f"it is {_TOLD_JSON[type(text)]}")
    return _of_text(origin, text, config)


def _told_broken(data: bytes) -> str:
    """What a line that is no JSON may be a part of."""
    if data.startswith(b"["):
        return "a list begins there; write one object a line"
    if data.startswith(b"{") and not data.endswith(b"}"):
        return "an object begins there and does not end in its line; write each one on a line"
    return ""


_TOLD_JSON = {
    dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number",
    type(None): "null",
}  # fmt: skip


def _told_object(line: dict[str, Any], field: str) -> str:
    """The fields of an object that lacks the field of the text; where it is spelled as a path, what is the matter."""
    first, _, rest = field.partition(".")
    if rest and isinstance(line.get(first), dict):
        return f"{shortened(first, 40)} is an object, whose inner fields are not read; write the text at the top"
    texts = sorted((n for n, value in line.items() if isinstance(value, str)), key=lambda name: -len(line[name]))
    objects = [name for name, value in line.items() if isinstance(value, dict)]
    inner = f"; what is in {shortened(objects[0], 40)} is not read" if objects and not texts else ""
    return told_fields(list(line), texts) + inner


def _told_encoding(data: bytes | bytearray) -> str:
    """What bytes that are no UTF-8 may be."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or data[:200].count(0) > len(data[:200]) // 3:
        return "it looks like UTF-16"
    return "it may be Latin-1 or Windows-1252"


def _parsed(data: bytes) -> Any:
    """A JSON value, by a fast parser; what that one refuses, Python's own takes or gives the reason for."""
    try:
        return from_json(data, cache_strings="none")
    except ValueError:
        return json.loads(data.decode("utf-8"))


def _has_too_many_values(data: bytes) -> bool:
    """Whether a line is so many numbers or empty objects that they would fill the memory: each has a mark before it."""
    if _marks(data) <= _MOST_VALUES:
        return False
    return _marks(_JSON_STRING.sub(b"", data)) > _MOST_VALUES


def _marks(data: bytes) -> int:
    return sum(map(data.count, (b",", b"[", b"{"))) if len(data) > _MOST_VALUES else 0


def _repeats(field: str, data: bytes) -> bool:
    """Whether an object has a field twice, so that one of the two texts would be lost."""
    if data.count(json.dumps(field, ensure_ascii=False).encode()) < 2:  # a spelling with escapes is not looked for
        return False
    pairs = json.loads(data, object_pairs_hook=list)  # an object as its pairs, inner ones as well
    return [name for name, _ in pairs].count(field) > 1


def _of_utf8(origin: str, data: bytes | bytearray | pa.Buffer, config: DataConfig) -> Document:
    limit = config.max_document_bytes if config.unicode_normalization == "none" else _longest(config)
    if len(data) > limit:
        return Document(origin, reason="too_large")
    try:
        return _of_text(origin, str(data, "utf-8"), config)
    except UnicodeDecodeError:
        return Document(origin, reason="not_utf8", detail=_told_encoding(bytes(data[:200])))


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


class Format(NamedTuple):
    """How files with a suffix are read.

    Attributes:
        read: The reader.
        splits: Whether a byte range can be read alone.
        unpack: What opens the content of a compressed file, None where it is not compressed.
    """

    read: Reader
    splits: bool
    unpack: Unpack | None = None


FORMATS = {
    ".jsonl": Format(read_jsonl, splits=True),
    ".jsonl.gz": Format(read_jsonl, splits=False, unpack=unpack_gzip),
    ".jsonl.zst": Format(read_jsonl, splits=False, unpack=unpack_zstd),
    ".parquet": Format(read_parquet, splits=True),
    ".txt": Format(read_txt, splits=True),
}
ARROW_SUFFIX = ".arrow"
ARROW = Format(read_arrow, splits=False)
"""The files of a folder that datasets has saved; alone they are no source, since the folder says which belong to it."""


def format_of(uri: str) -> Format | None:
    """The format that a file's suffix names, if any."""
    if uri.endswith(ARROW_SUFFIX):
        return ARROW
    return next((format_ for suffix, format_ in FORMATS.items() if uri.endswith(suffix)), None)
