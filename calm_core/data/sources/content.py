"""The content of source files: what a plan knows of it, and reading no other than this.

Between planning and any later step a file may change under its name, also at equal size. So a plan holds the SHA-256
of each block of a file, and whatever is read of the file is compared with them, block by block: by scanning, training
the tokenizer and tokenising alike, wherever a partition begins, at the cost of one more hash of what is read anyway.
What an object store says of an object, its tag, costs no reading; there the tag is compared instead.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from calm_core.errors import ArtifactError, SourceError, StorageError
from calm_core.store import storage
from calm_core.store.facts import SourceFile

BLOCK_BYTES = 1 << 20
_HASH_BYTES = hashlib.sha256().digest_size


class FoundFile(SourceFile):
    """A source file as it is now.

    Attributes:
        blocks: SHA-256 of each block of BLOCK_BYTES (the last one may be shorter), one after the other; empty where the
            digest is an object store's tag.
    """

    blocks: bytes = b""

    @classmethod
    def at(cls, uri: str) -> "FoundFile":
        """Look at a file.

        Raises:
            SourceError: It is missing.
        """
        try:
            if tag := storage.tag(uri):
                return cls(uri=uri, size=storage.size(uri), digest=tag)
            whole, blocks, size = hashlib.sha256(), bytearray(), 0
            with storage.open_uri(uri) as file:
                while block := file.read(BLOCK_BYTES):
                    whole.update(block)
                    blocks += hashlib.sha256(block).digest()
                    size += len(block)
        except FileNotFoundError:
            raise SourceError(f"{uri}: is missing; restore it, or leave it out of data.sources") from None
        return cls(uri=uri, size=size, digest=whole.hexdigest(), blocks=bytes(blocks))

    def as_planned(self) -> SourceFile:
        """The file as plans and manifests name it."""
        return SourceFile(uri=self.uri, size=self.size, digest=self.digest)


def write_blocks(file: FoundFile, place: str) -> None:
    """Note a file's blocks in the folder of a plan. Of a single block the file's digest says all."""
    if len(file.blocks) > _HASH_BYTES:
        storage.write(_blocks_uri(file, place), file.blocks)


def _blocks_uri(file: SourceFile, place: str) -> str:
    return storage.child(place, f"{file.digest}.blocks")


def _read_blocks(file: SourceFile, place: str) -> bytes:
    if file.size <= BLOCK_BYTES:
        return bytes.fromhex(file.digest)
    uri = _blocks_uri(file, place)
    try:
        blocks = storage.read(uri)
    except FileNotFoundError:
        blocks = b""
    if len(blocks) != -(-file.size // BLOCK_BYTES) * _HASH_BYTES:
        raise ArtifactError(f"{uri}: the plan is missing or damaged; plan again")
    return blocks


@contextmanager
def open_planned(file: SourceFile, place: str) -> Iterator[IO[bytes]]:
    """Open a source file, to read what was there when it was planned and nothing else.

    Args:
        file: As the plan says.
        place: URL of the plan's folder.

    Raises:
        SourceError: The file has changed or is gone; what has been read of it by then is as planned.
        ArtifactError: The plan's own file is missing or damaged.
    """
    try:
        with storage.open_uri(file.uri) as content:  # an object store's file is of one tag from here on
            tag = _require_as_planned(file)
            if tag:
                yield content
            else:
                yield io.BufferedReader(_Checked(content, file, _read_blocks(file, place)), BLOCK_BYTES)
        _require_as_planned(file)
    except FileNotFoundError:
        raise _changed(file) from None
    except StorageError:  # perhaps because the file has been replaced
        _require_as_planned(file)
        raise


def _require_as_planned(file: SourceFile) -> str:
    """The file's tag, after a look at it that costs no reading."""
    try:
        tag = storage.tag(file.uri)
        same = storage.size(file.uri) == file.size and tag == (file.digest if storage.is_tag(file.digest) else "")
    except FileNotFoundError:
        same = False
    if not same:
        raise _changed(file)
    return tag


def _changed(file: SourceFile) -> SourceError:
    return SourceError(f"{file.uri}: changed or removed since the run was planned; run again", can_pass=True)


class _Checked(io.RawIOBase):
    """A file that is read a whole block at a time, each compared with its hash; one block is in memory.

    Raises:
        SourceError: A block has other bytes.
    """

    def __init__(self, content: IO[bytes], file: SourceFile, hashes: bytes) -> None:
        super().__init__()
        self._content, self._file, self._hashes = content, file, hashes
        self._position = 0
        self._block, self._number = b"", -1

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        number, start = divmod(self._position, BLOCK_BYTES)
        if self._position >= self._file.size:
            return 0
        if number != self._number:
            self._load(number)
        part = memoryview(self._block)[start : start + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _load(self, number: int) -> None:
        self._content.seek(number * BLOCK_BYTES)
        block = self._content.read(BLOCK_BYTES)
        if hashlib.sha256(block).digest() != self._hashes[number * _HASH_BYTES : (number + 1) * _HASH_BYTES]:
            raise _changed(self._file)
        self._block, self._number = block, number

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        return self._position
