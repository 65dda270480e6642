"""The pages of a Parquet column, looked at before Arrow unpacks them.

Arrow allocates what a page's header asks for, and copies a text of the dictionary for each row that has it: 500 bytes
can stand for 20 GB. So a column's headers are read first. They say how large its pages are unpacked, and no value is
larger than the largest of them.

A header is a struct in Thrift's compact protocol, whose fields parquet.thrift of the Parquet format names.
"""

import io
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from calm_core.errors import SourceError

_COUNTED = {0: 5, 3: 8}  # types of pages that hold values, and in which field their own header is
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 12  # types of fields
_DEEPEST, _VARINT_BYTES, _FARTHEST = 4, 10, 1 << 31
_UNPACKED_FOR_EACH = 10  # bytes of a large page for each that it takes in the file; text is packed to a third


def page_sizes(file: IO[bytes], uri: str, chunk: pq.ColumnChunkMetaData, most: int) -> list[int]:
    """The bytes of each page of a column of one row group, unpacked, as far as Arrow will read them.

    Args:
        file: The Parquet file.
        uri: Its name.
        chunk: Metadata of the column.
        most: Bytes that any page may have.

    Raises:
        pyarrow.ArrowInvalid: A header is damaged, or the pages are not those that the metadata tell of.
        SourceError: A page is larger, and far larger than what it takes in the file.
    """
    place = data = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < data:
        place = chunk.dictionary_page_offset
    end, values, sizes = place + chunk.total_compressed_size, 0, []
    while values < chunk.num_values:
        if not 0 <= place < end:
            raise pa.ArrowInvalid(f"a column holds {values:,} values, not {chunk.num_values:,}")
        file.seek(place)
        header = _struct(file, _DEEPEST)
        kind, unpacked, packed = (_number(header, field) for field in (1, 2, 3))
        place = file.tell() + packed
        if place > end:
            raise pa.ArrowInvalid("a page ends behind its column")
        if unpacked > max(most, _UNPACKED_FOR_EACH * packed):
            raise SourceError(
                f"{uri}: a page of {packed:,} bytes asks for {unpacked:,} of memory: no text does; leave the file "
                "out, or write it again with smaller pages"
            )
        values += _number(header.get(_COUNTED[kind]), 1) if kind in _COUNTED else 0
        sizes.append(unpacked)
    return sizes


def _number(header: Any, field: int) -> int:
    number = header.get(field) if isinstance(header, dict) else None
    if not isinstance(number, int) or number < 0:
        raise pa.ArrowInvalid("the header of a page is damaged")
    return number


def _struct(file: IO[bytes], deepest: int) -> dict[int, Any]:
    """The fields of a struct by their numbers; of texts, which no reader of sizes needs, their places are skipped."""
    fields: dict[int, Any] = {}
    number = 0
    while head := _byte(file):  # the type, and how far the number is from that of the field before
        kind = head & 15
        number = number + (head >> 4) if head >> 4 else _signed(_varint(file))
        if kind in (_TRUE, _FALSE):  # it is its type
            continue
        if kind in (_I16, _I32, _I64):
            fields[number] = _signed(_varint(file))
        elif kind in (_BYTE, _DOUBLE, _BINARY):
            file.seek({_BYTE: 1, _DOUBLE: 8}.get(kind) or min(_varint(file), _FARTHEST), io.SEEK_CUR)
        elif kind == _STRUCT and deepest:
            fields[number] = _struct(file, deepest - 1)
        else:
            raise pa.ArrowInvalid("the header of a page is damaged")
    return fields


def _byte(file: IO[bytes]) -> int:
    if not (data := file.read(1)):
        raise pa.ArrowInvalid("the header of a page is cut off")
    return data[0]


def _varint(file: IO[bytes]) -> int:
    """A number, seven bits a byte, the lowest first; the last byte is below 128."""
    number = 0
    for shift in range(0, 7 * _VARINT_BYTES, 7):
        byte = _byte(file)
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise pa.ArrowInvalid("the header of a page is damaged")


def _signed(number: int) -> int:
    """A signed number from its zigzag form: 0, -1, 1, -2, ... are 0, 1, 2, 3, ..."""
    return (number >> 1) ^ -(number & 1)
