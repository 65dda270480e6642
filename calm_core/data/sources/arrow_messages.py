"""The messages of Arrow's stream format, looked at before Arrow reads them.

A message is its length, a FlatBuffers table that describes it, and a body. Arrow allocates what they ask for.
"""

import io
import struct
from typing import IO, Any

_CONTINUED = 0xFFFFFFFF
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # types of messages


class Bounded(io.RawIOBase):
    """A file that is asked for no more than it has, however much a message claims to be."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._left = file.seek(0, io.SEEK_END)
        file.seek(0)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        data = self._file.read(self._left if size is None or size < 0 else min(size, self._left))
        self._left -= len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def has_compressed_batches(file: IO[bytes]) -> bool:
    """Whether a stream holds batches whose buffers are compressed, so that they may be of any size.

    It is read up to where it ends or is damaged; Arrow gets no further.
    """
    size = file.seek(0, io.SEEK_END)
    place = 0
    while True:
        file.seek(place)
        first, second = struct.unpack("<II", file.read(8).ljust(8, b"\0"))
        place, length = (place + 8, second) if first == _CONTINUED else (place + 4, first)
        if not 0 < length <= size - place:
            return False
        file.seek(place)
        try:
            table = _Table.root(file.read(length))
            kind, body = table.number(1, "<B"), table.number(3, "<q")
            batch = table.table(2) if kind in (_DICTIONARY_BATCH, _RECORD_BATCH) else None
            batch = batch.table(1) if batch and kind == _DICTIONARY_BATCH else batch
            if batch and batch.place_of(3):
                return True
        except struct.error:
            return False
        place += length + body
        if body < 0:
            return False


class _Table:
    """A FlatBuffers table: its fields lie where a second table says, by their numbers."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - self._unpack("<i", place)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    def place_of(self, field: int) -> int:
        """Where a field lies, 0 where the table lacks it."""
        entry = 4 + 2 * field
        offset = self._unpack("<H", self._fields + entry) if entry < self._unpack("<H", self._fields) else 0
        return self._place + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        return self._unpack(form, place) if (place := self.place_of(field)) else 0

    def table(self, field: int) -> "_Table | None":
        place = self.place_of(field)
        return _Table(self._data, place + self._unpack("<I", place)) if place else None

    def _unpack(self, form: str, place: int) -> int:
        return int(struct.unpack_from(form, self._data, place)[0])
