"""Files on any fsspec URL: a local path and ``s3://bucket/key`` behave alike.

An object store's endpoint and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY), never from a setting.
"""

import errno
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from calm_core.errors import StorageError

_BLOCK_BYTES = 1 << 20
_PARTIAL = ".partial"
_ATTEMPTS, _FIRST_WAIT_SECONDS = 6, 0.5
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)

_FULL = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def open_uri(uri: str) -> IO[bytes]:
    """Open a file on any fsspec URL for reading."""
    file: IO[bytes] = fsspec.open(uri, "rb").open()
    return file


def read(uri: str) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: There is none.
        StorageError: The storage did not answer, several times.
    """

    def whole() -> bytes:
        filesystem, path = url_to_fs(uri)
        return bytes(filesystem.cat_file(path))

    return with_retries(whole, uri)


def write(uri: str, data: bytes) -> None:
    """Write a file, which appears whole or not at all."""
    with create(uri) as file:
        file.write(data)


@contextmanager
def create(uri: str) -> Iterator["DigestingFile"]:
    """Write a file piece by piece; it appears whole when the block ends without an error, and else not at all."""
    filesystem, path = url_to_fs(uri)
    if isinstance(filesystem, LocalFileSystem):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}{_PARTIAL}")
        try:
            with open(partial, "wb") as file:
                yield DigestingFile(file)
            partial.replace(target)
        except OSError as error:
            if error.errno in _FULL:
                raise StorageError(f"{uri}: cannot be written ({error.strerror}); free space, then run again") from None
            raise
        finally:
            partial.unlink(missing_ok=True)
        return
    file = filesystem.open(path, "wb", autocommit=False)
    try:
        yield DigestingFile(file)
        file.close()
        file.commit()
    except BaseException:
        with suppress(Exception):  # what is left of an upload must not hide the error
            file.discard()
        raise


class DigestingFile(io.RawIOBase):
    """A writable binary file that counts and hashes what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far, as hex."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)
        return len(data)


def with_retries(action: Callable[[], Result], what: str) -> Result:
    """The result of an action on the storage, tried again with growing pauses while the storage fails.

    Raises:
        OSError: A file is missing or forbidden, which no waiting mends.
        StorageError: It failed each time.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except _PERMANENT:
            raise
        except Exception as error:  # object stores raise what their libraries make of it, not only OSError
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            last = error
            if attempt + 1 < _ATTEMPTS:
                time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
    reason = f"{type(last).__name__}: {last}".splitlines()[0]
    raise StorageError(
        f"{what}: the storage failed {_ATTEMPTS} times ({reason}); check that it can be reached, then run the same "
        "command again"
    ) from last


def absolute(uri: str) -> str:
    """The same place, wherever the process stands."""
    filesystem, path = url_to_fs(uri)
    return str(filesystem.unstrip_protocol(path))


def exists(uri: str) -> bool:
    """Whether a file or folder is at `uri`."""
    filesystem, path = url_to_fs(uri)
    return bool(filesystem.exists(path))


def size(uri: str) -> int:
    """Size of a file in bytes."""
    filesystem, path = url_to_fs(uri)
    return int(filesystem.size(path))


def digest(uri: str) -> str:
    """What tells a file's content from other content: SHA-256, or an object store's ETag, which costs no reading."""
    filesystem, path = url_to_fs(uri)
    info = filesystem.info(path)
    tag = info.get("ETag")
    return f"etag-{tag.strip(chr(34))}-{info['size']}" if tag else sha256_of(uri)


def is_folder(uri: str) -> bool:
    """Whether `uri` names a folder (on an object store: whether files lie below it)."""
    filesystem, path = url_to_fs(uri)
    return bool(filesystem.isdir(path))


def glob(pattern: str) -> list[str]:
    """Sorted URIs of the files and folders that match a pattern (or of the one that has this name)."""
    filesystem, path = url_to_fs(pattern)
    paths = [path] if filesystem.exists(path) else filesystem.glob(path)
    return [filesystem.unstrip_protocol(p) for p in sorted(paths)]


def remove(uris: list[str]) -> None:
    """Delete files that are there."""
    for uri in uris:
        filesystem, path = url_to_fs(uri)
        with suppress(FileNotFoundError):
            filesystem.rm_file(path)


def copy(source_uri: str, target_uri: str) -> None:
    """Copy one file between any two URLs, on the server where both lie on one object store."""
    source_fs, source_path = url_to_fs(source_uri)
    target_fs, target_path = url_to_fs(target_uri)
    if source_fs == target_fs and not isinstance(source_fs, LocalFileSystem):
        with_retries(lambda: source_fs.cp_file(source_path, target_path), source_uri)
        return
    with source_fs.open(source_path, "rb") as source, create(target_uri) as target:
        for block in blocks(source):
            target.write(block)


def blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of an open binary file in blocks of one MiB."""
    while block := file.read(_BLOCK_BYTES):
        yield block


def sha256_of(uri: str) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open_uri(uri) as file:
        for block in blocks(file):
            digest.update(block)
    return digest.hexdigest()
