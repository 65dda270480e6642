"""Compressed files as streams, and how much may come out of a file: a few bytes can stand for any number."""

import gzip
import io
from collections.abc import Callable
from typing import IO, Any

import pyarrow as pa

from calm_core.errors import SourceError

_FREE_BYTES, _BYTES_FOR_EACH = 1 << 30, 2000  # gzip cannot reach this ratio, and text does not come near
_FREE_ROWS, _ROWS_FOR_EACH = 1 << 24, 8
_ASKED_BYTES = 4096  # at a time; before damage, Arrow gives no part of what was asked
_LONG_WINDOW = "too much memory"  # what Zstandard says of a frame that needs more than 128 MiB

Unpack = Callable[[IO[bytes], str], IO[bytes]]


class Unpacked:
    """What has come out of a file so far.

    Args:
        file: The file; its place is kept.
        uri: Its name.
    """

    def __init__(self, file: IO[bytes], uri: str) -> None:
        place = file.tell()
        self.size = file.seek(0, io.SEEK_END)
        file.seek(place)
        self._uri, self._bytes, self._rows = uri, 0, 0

    def add(self, new_bytes: int) -> None:
        """Count bytes of text.

        Raises:
            SourceError: They are far too many for a file of this size.
        """
        self._bytes += new_bytes
        if self._bytes > (limit := _FREE_BYTES + _BYTES_FOR_EACH * self.size):
            raise self._refused(f"more than {limit:,} bytes")

    def add_rows(self, rows: int) -> None:
        """Count rows, before they are read.

        Raises:
            SourceError: They are far too many for a file of this size.
        """
        self._rows += rows
        if self._rows > _FREE_ROWS + _ROWS_FOR_EACH * self.size:
            raise self._refused(f"{self._rows:,} rows")

    def _refused(self, what: str) -> SourceError:
        return SourceError(f"{self._uri}: its {self.size:,} bytes stand for {what}: no text does; leave it out")


class _Stream(io.RawIOBase):
    """The content of a compressed file, counted."""

    def __init__(self, read: Callable[[int], bytes], file: IO[bytes], uri: str) -> None:
        super().__init__()
        self._read, self._uri, self._unpacked = read, uri, Unpacked(file, uri)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._read(len(buffer))
        except OSError as error:
            if _LONG_WINDOW not in str(error):
                raise
            raise SourceError(
                f"{self._uri}: needs more than 128 MiB of memory to be unpacked; pack it again with a window of at "
                "most 27 bits, zstd --long=27"
            ) from None
        self._unpacked.add(len(data))
        buffer[: len(data)] = data
        return len(data)


def unpack_gzip(file: IO[bytes], uri: str) -> IO[bytes]:
    """A gzip file's content; several members may follow each other, and zeros after them are padding.

    Raises:
        BadGzipFile: It is none.
    """
    if not _begins_with(file, (b"\x1f\x8b",)):
        raise gzip.BadGzipFile("no gzip file; name it .jsonl if it is not compressed")
    return io.BufferedReader(_Stream(gzip.GzipFile(fileobj=file).read1, file, uri), _ASKED_BYTES)


def unpack_zstd(file: IO[bytes], uri: str) -> IO[bytes]:
    """A Zstandard file's content; several frames may follow each other, and skippable ones hold none.

    Raises:
        pyarrow.ArrowInvalid: It is none.
        SourceError: In a later call: a frame needs too much memory.
    """
    if not _begins_with(file, (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16)))):
        raise pa.ArrowInvalid("no Zstandard file; name it .jsonl if it is not compressed")
    return io.BufferedReader(_Stream(pa.CompressedInputStream(file, "zstd").read, file, uri), _ASKED_BYTES)


def _begins_with(file: IO[bytes], marks: tuple[bytes, ...]) -> bool:
    head = file.read(max(map(len, marks)))
    file.seek(0)
    return head.startswith(marks)
