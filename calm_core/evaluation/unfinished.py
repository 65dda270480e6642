"""What an evaluation keeps while it works, so that one that was interrupted goes on where it was."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from calm_core.errors import ConfigError
from calm_core.store import storage
from calm_core.store.artifact import digest_of
from calm_core.store.facts import Record
from calm_core.store.lock import FolderLock

Arrays = dict[str, npt.NDArray[Any]]
RecordT = TypeVar("RecordT", bound=Record)

_ADVICE = "wait for it, or stop it, then run the same command again"
_SHA256_BYTES = 32
_LARGEST = 1 << 30  # bytes of a piece; what is longer was not written here


class Unfinished:
    """Pieces of an evaluation that have been measured, each in a file that begins with the SHA-256 of the rest.

    Args:
        lock: Of the folder; None where nothing is kept.
        uri: The folder.
        maker: What tells pieces that other code has measured, or another device, from one's own.
        tell: Gets a line about a piece that is measured again.
    """

    def __init__(
        self,
        lock: FolderLock | None = None,
        uri: str = "",
        maker: str = "",
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        self._lock, self._uri, self._maker, self._tell = lock, uri, maker, tell

    def arrays(self, name: str, measure: Callable[[], Arrays]) -> Arrays:
        """Arrays as they were measured before the interruption, else as they are measured now."""
        if (data := self._recalled(name)) is not None:
            return load(data)
        measured = measure()
        self._keep(name, save({key: np.ascontiguousarray(array) for key, array in measured.items()}))
        return measured

    def record(self, name: str, kind: type[RecordT], measure: Callable[[], RecordT]) -> RecordT:
        """As `arrays`, of a record."""
        if (data := self._recalled(name)) is not None:
            return kind.model_validate_json(data)
        measured = measure()
        self._keep(name, measured.model_dump_json().encode())
        return measured

    def remove(self) -> None:
        """Forget everything: the evaluation is finished.

        Raises:
            LockLostError: The folder is somebody else's by now.
        """
        if self._lock:
            self._lock.remove_folder()

    def _recalled(self, name: str) -> bytes | None:
        """What is kept of a piece; None where nothing is, or not as it was written."""
        if not self._lock:
            return None
        try:
            data = storage.read(self._file(name), 0, _LARGEST)
        except FileNotFoundError:
            return None
        if hashlib.sha256(data[_SHA256_BYTES:]).digest() == data[:_SHA256_BYTES]:
            return data[_SHA256_BYTES:]
        self._tell(f"{self._file(name)} is damaged; measuring it again")
        return None

    def _keep(self, name: str, data: bytes) -> None:
        if self._lock:
            self._lock.require()
            storage.write(self._file(name), hashlib.sha256(data).digest() + data)

    def _file(self, name: str) -> str:
        return storage.child(self._uri, f"{name}.{self._maker}")


@contextmanager
def unfinished(
    identity: Mapping[str, Any],
    maker: Sequence[str],
    checkpoint_root: str,
    output_uri: str,
    tell: Callable[[str], object],
) -> Iterator[Unfinished]:
    """What is kept of one evaluation, which nobody else works on while the block lasts.

    Args:
        identity: What is measured, and how; it names the folder, which goes once anybody has finished this.
        maker: The code and the device, on which its bytes depend as well: pieces of another one do not count.
        checkpoint_root: Folder of what is unfinished; empty: nothing is kept.
        output_uri: Where the evaluation is written.
        tell: Gets a line when somebody else is waited for, and when a piece is damaged.

    Raises:
        ConfigError: The folder would be removed with the evaluation in it, or lie in it.
        CalmError: Somebody else works on this evaluation.
    """
    if not checkpoint_root:
        yield Unfinished()
        return
    uri = folder_of(identity, checkpoint_root)
    if storage.is_inside(output_uri, uri) or storage.is_inside(uri, output_uri):
        raise ConfigError(
            f"output_uri: {output_uri} and what is kept in {uri} would lie in each other; give checkpoint_root another "
            "folder"
        )
    with FolderLock(uri, _ADVICE, tell=tell) as lock:
        storage.remove_partial(uri)
        yield Unfinished(lock, uri, digest_of([*maker])[:16], tell)


def folder_of(identity: Mapping[str, Any], checkpoint_root: str) -> str:
    """Where an evaluation keeps what it has measured."""
    return storage.join(checkpoint_root, f"evaluation-{digest_of(identity)[:16]}")
