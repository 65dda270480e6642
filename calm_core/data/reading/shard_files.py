"""Shards as local files: those of a remote dataset are kept in a bounded cache that all processes of a node share."""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from calm_core.errors import CalmError, first_line
from calm_core.store import storage
from calm_core.store.artifact import Artifact, FileEntry
from calm_core.store.facts import Facts

CACHE_VARIABLE, CACHE_BYTES_VARIABLE = "CALM_CACHE", "CALM_CACHE_BYTES"
_CACHE_BYTES = 50 * 2**30
_BLOCK_BYTES = 4 << 20


class ShardFiles:
    """Opens files of an artifact as local files, each checked against the manifest when it is first opened.

    A remote file is fetched once for all processes of the node, into $CALM_CACHE (else ~/.cache/calm) under the name of
    its SHA-256. The cache holds $CALM_CACHE_BYTES (else 50 GiB); files that were used longest ago go first.

    Raises:
        CalmError: The cache cannot be written, or its size is no number.
    """

    def __init__(self, artifact: Artifact[Facts]) -> None:
        self._artifact = artifact
        self._local = storage.is_local(artifact.uri)
        self._checked: set[str] = set()
        self._guards: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "calm")
        try:
            self._limit = int(os.environ.get(CACHE_BYTES_VARIABLE) or _CACHE_BYTES)
        except ValueError:
            raise CalmError(
                f"{CACHE_BYTES_VARIABLE}: {os.environ[CACHE_BYTES_VARIABLE]!r} is no number of bytes"
            ) from None

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading.

        Raises:
            ArtifactError: It is missing or damaged.
            StorageError: The storage failed, several times.
        """
        with self._guard:
            guard = self._guards.setdefault(path, threading.Lock())
        with guard:
            return self._open_local(path) if self._local else self._open_cached(path)

    def _open_local(self, path: str) -> IO[bytes]:
        _, local_path = storage.filesystem_of(self._artifact.uri_of(path))
        try:
            with storage.translating_errors(local_path):
                file = _opened(Path(local_path))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise self._artifact.missing(path) from None
        if path not in self._checked:
            if not _is_whole(file, self._artifact.entry(path)):
                file.close()
                raise self._artifact.damaged(path)
            self._checked.add(path)
        return file

    def _open_cached(self, path: str) -> IO[bytes]:
        entry = self._artifact.entry(path)
        cached = self._folder / entry.sha256
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock(entry.sha256):
                with suppress(FileNotFoundError):  # not there, or another thread or process makes room just now
                    file = _opened(cached)
                    if path in self._checked or _is_whole(file, entry):
                        self._checked.add(path)
                        os.utime(file.fileno())
                        return file
                    file.close()
                file = self._fetch(path, entry, cached)
            self._checked.add(path)
            self._make_room(cached)
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise CalmError(
                f"{self._folder}: the cache of shards cannot be written ({reason}); free space, or "
                f"set {CACHE_VARIABLE} to another folder and {CACHE_BYTES_VARIABLE} to less"
            ) from None
        return file

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Keep other processes of the node from fetching the same file at the same time."""
        with open(self._folder / f".{name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _fetch(self, path: str, entry: FileEntry, cached: Path) -> IO[bytes]:
        """Bring a file into the cache; it is opened before it gets its name, since it may be removed right after."""
        partial = cached.with_name(f".{cached.name}.partial")
        try:
            uri = self._artifact.uri_of(path)
            if storage.size(uri) != entry.size:  # first: it may have become larger than the disk
                raise self._artifact.damaged(path)
            storage.fetch(uri, partial)
            file = _opened(partial)
            if not _is_whole(file, entry):
                file.close()
                raise self._artifact.damaged(path)
            partial.replace(cached)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise self._artifact.missing(path) from None
        finally:
            partial.unlink(missing_ok=True)
        return file

    def _make_room(self, newest: Path) -> None:
        """Delete the files that were used longest ago; whoever has one open reads on."""
        found = []
        for file in self._folder.iterdir():
            if file.name.startswith("."):
                continue
            try:
                status = file.stat()
            except FileNotFoundError:  # another process made room, too
                continue
            found.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in found)
        for _, size, file in sorted(found, key=lambda entry: entry[0]):
            if total <= self._limit:
                break
            if file != newest:
                file.unlink(missing_ok=True)  # its lock stays: others may wait for it
                total -= size


def _opened(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _is_whole(file: IO[bytes], entry: FileEntry) -> bool:
    if os.fstat(file.fileno()).st_size != entry.size:
        return False
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest() == entry.sha256
