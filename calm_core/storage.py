"""Files on any fsspec URL: a local path and ``s3://bucket/key`` behave alike."""

import hashlib
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

_BLOCK_BYTES = 1 << 20


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def open_uri(uri: str, mode: str = "rb") -> IO[Any]:
    """Open a file on any fsspec URL; parent folders of a written file are made."""
    if "w" in mode:
        filesystem, path = url_to_fs(uri)
        filesystem.makedirs(filesystem._parent(path), exist_ok=True)
    file: IO[Any] = fsspec.open(uri, mode).open()
    return file


def exists(uri: str) -> bool:
    """Whether a file or folder is at `uri`."""
    filesystem, path = url_to_fs(uri)
    return bool(filesystem.exists(path))


def size(uri: str) -> int:
    """Size of a file in bytes."""
    filesystem, path = url_to_fs(uri)
    return int(filesystem.size(path))


def glob(pattern: str) -> list[str]:
    """Sorted URIs of the files that match a pattern (or of the one file that has this name)."""
    filesystem, path = url_to_fs(pattern)
    paths = [path] if filesystem.isfile(path) else filesystem.glob(path)
    return [filesystem.unstrip_protocol(p) for p in sorted(paths) if filesystem.isfile(p)]


def copy(source_uri: str, target_uri: str) -> None:
    """Copy one file between any two URLs, on the server where both lie on one file system."""
    source_fs, source_path = url_to_fs(source_uri)
    target_fs, target_path = url_to_fs(target_uri)
    target_fs.makedirs(target_fs._parent(target_path), exist_ok=True)
    if source_fs == target_fs:
        source_fs.cp_file(source_path, target_path)
        return
    with source_fs.open(source_path, "rb") as source, target_fs.open(target_path, "wb") as target:
        while block := source.read(_BLOCK_BYTES):
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
