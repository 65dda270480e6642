"""A lock that keeps two processes out of one folder, on any fsspec URL.

It is a small file in that folder, which says who holds it, and beats: its holder writes it anew every few seconds. Its
name carries a number. A lock whose holder is dead is taken over by claiming the next number, which only one of several
can; the highest number holds. So nobody ever removes or writes what is another one's, and a holder that was paused
meanwhile finds a higher number than its own.
"""

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

from pydantic import Field, ValidationError

from calm_core.errors import CalmError, StorageError
from calm_core.store import storage
from calm_core.store.facts import Count, Record

BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0
"""After so long without a beat, by the clock of whoever waits, a holder on another machine counts as dead. It is more
than an object store is asked again for."""
ENDING_SECONDS = 60.0
"""What the processes that a dead holder has started may take to end."""
_LOOK_SECONDS = 0.5
_SAME_START_SECONDS = 2.0  # by which two answers to when a process has started may differ
_NAME = re.compile(r"\.calm-lock-([1-9][0-9]{0,9})")
_LARGEST = 4096  # bytes


class LockLostError(CalmError):
    """A folder is somebody else's by now."""

    can_pass = True


class Holder(Record):
    """Who holds a lock.

    Attributes:
        token: Of this lock alone.
        host: Name of its machine, for people.
        machine: Tells it, since it was last started, and within it a container's own count of processes, from others.
        pid, started: The process, and when it started, in seconds since the machine did, which no setting of the clock
            changes; of equal numbers, the time tells which.
        since: When it took the lock; seconds since the epoch by its clock.
        beat: How often it has shown itself.
    """

    token: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    host: Annotated[str, Field(max_length=255)]
    machine: Annotated[str, Field(max_length=512)]
    pid: Annotated[int, Field(ge=1, le=2**31)]
    started: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    since: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    beat: Count = 0

    @property
    def process(self) -> tuple[str, int, float]:
        """What tells the process from all others."""
        return self.machine, self.pid, self.started

    @property
    def is_here(self) -> bool:
        """Whether this machine can tell if it is alive."""
        return self.machine == machine()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs, of one that is here."""
        started = _start_of(self.pid)
        return started is not None and abs(started - self.started) < _SAME_START_SECONDS

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


_found_dead: set[tuple[str, int, float]] = set()
"""Processes on other machines: one that held several locks is waited for once."""


def machine() -> str:
    """What tells this machine, and the container that this process is in, from others."""
    told = [socket.gethostname()]
    with suppress(OSError):  # there on Linux alone
        told += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    return " ".join(told)


def _start_of(pid: int) -> float | None:
    """When a process has started, in seconds since the machine did; None if there is none of this number."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return max(float(process.create_time() - psutil.boot_time()), 0.0)
    return None


def is_lock(name: str) -> bool:
    """Whether a file's name is that of a lock."""
    return _NAME.fullmatch(name) is not None


def is_held(uri: str, token: str) -> bool:
    """Whether the lock of a folder is this one."""
    holder = _read(_newest(uri)[1])
    return holder is not None and holder.token == token


def require(uri: str, token: str, number: int = 0) -> None:
    """Refuse to write to a folder whose lock is no longer what it was: while its holder stood still, another one came.

    Args:
        uri: The folder.
        token: Of the lock.
        number: Of the lock, which whoever goes on with its token does not have; 0 for any.

    Raises:
        LockLostError: It is not.
        StorageError: The storage failed, so this cannot be told.
    """
    newest, data = _newest(uri)
    holder = _read(data)
    if holder is None or holder.token != token or number not in (0, newest):
        who = f"is held by another one now ({holder})" if holder else "is gone"
        raise LockLostError(
            f"{uri}: its lock {who}, since this one stood still for long; run the same command again once nothing "
            "works there"
        )


def may_be_held(uri: str) -> bool:
    """Whether a folder has a lock, and its holder is not known to be dead."""
    data = _newest(uri)[1]
    holder = _read(data)
    return bool(data) and not (holder and holder.is_here and not holder.is_alive)


class FolderLock:
    """Holds a folder while the block lasts, and shows so; the folder need not be there.

    Args:
        uri: The folder.
        advice: What whoever finds it held shall do.
        is_at_work: Whether processes are still at work that a holder on this machine has started, who is dead.
        tell: Gets a line before a holder on another machine is waited for.
        token: That of a holder who is dead, whose processes on other machines go on working for this one; unset, one
            of its own.

    Attributes:
        token: What other processes that work for this one ask `require` with.

    Raises:
        CalmError: Somebody else holds it.
        StorageError: The storage failed.

    Example:
        >>> with FolderLock(uri, "wait for it") as lock:
        ...     work()
        ...     lock.remove_folder()
    """

    def __init__(
        self,
        uri: str,
        advice: str,
        *,
        is_at_work: Callable[[], bool] = lambda: False,
        tell: Callable[[str], object] = lambda line: None,
        token: str = "",
    ) -> None:
        self._uri, self._advice, self._is_at_work, self._tell = uri, advice, is_at_work, tell
        self.token = token or secrets.token_hex(16)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        pid = os.getpid()
        self._holder = Holder(
            token=self.token,
            host=socket.gethostname()[:255],
            machine=machine(),
            pid=pid,
            started=_start_of(pid) or 0.0,
            since=time.time(),
        )
        self._was_there = storage.exists(self._uri)
        while True:
            number, data = _newest(self._uri)
            if data and not self._has_gone(number, data):
                continue
            self._number = number + 1
            if storage.claim(self._file(self._number), _bytes(self._holder)):
                if is_held(self._uri, self.token):
                    break
                storage.remove([self._file(self._number)])
            time.sleep(_LOOK_SECONDS)
        storage.remove([self._file(older) for older in _numbers(self._uri) if older < self._number])
        self._thread.start()
        return self

    def _has_gone(self, number: int, data: bytes) -> bool:
        """Wait for the end of a holder; False if somebody else holds the folder by then, or nobody.

        Raises:
            CalmError: It is alive.
        """
        holder = _read(data)
        if holder and holder.process in _found_dead:
            return True
        if holder and holder.is_here:
            if holder.is_alive:
                raise self._held(str(holder))
            until = time.monotonic() + ENDING_SECONDS
            while self._is_at_work():
                if time.monotonic() > until:
                    raise self._held(f"what process {holder.pid} has started, which itself is gone")
                time.sleep(_LOOK_SECONDS)
            return True
        who = str(holder) if holder else f"somebody who cannot be told from {self._file(number)}"
        self._tell(f"{self._uri} is held by {who}; waiting {DEAD_SECONDS:.0f} s for a sign of life")
        until = time.monotonic() + DEAD_SECONDS
        while time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            number_now, data_now = _newest(self._uri)
            if (number_now, data_now) != (number, data):
                if number_now == number and data_now:
                    raise self._held(who)
                return False
        if holder:
            _found_dead.add(holder.process)
        return True

    def _held(self, who: str) -> CalmError:
        return CalmError(f"{self._uri}: is being worked on by {who}; {self._advice}", can_pass=True)

    def _file(self, number: int) -> str:
        return _file(self._uri, number)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with suppress(StorageError):  # that a lock cannot be shown is no reason to end what it is for
                if not self._is_held():
                    return
                self._holder = self._holder.model_copy(update={"beat": self._holder.beat + 1})
                storage.write(self._file(self._number), _bytes(self._holder))

    def require(self) -> None:
        """As `require`, of this lock."""
        require(self._uri, self.token, self._number)

    def _is_held(self) -> bool:
        number, data = _newest(self._uri)
        holder = _read(data)
        return number == self._number and holder is not None and holder.token == self.token

    def remove_folder(self) -> None:
        """Remove the folder, and the lock with it.

        Raises:
            LockLostError: The lock is no longer this one's.
        """
        self._stop_beating()  # which would write the lock again
        self.require()
        storage.remove_folder(self._uri)

    def _stop_beating(self) -> None:
        self._over.set()
        self._thread.join()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_beating()
        with suppress(StorageError):  # then whoever comes next finds that this process is gone
            if self._is_held():
                storage.remove([self._file(self._number)])
            if not self._was_there:
                storage.remove_empty_folder(self._uri)


def _bytes(holder: Holder) -> bytes:
    return holder.model_dump_json().encode()


def _read(data: bytes) -> Holder | None:
    """The holder that a lock's file tells; None where it tells nobody."""
    try:
        return Holder.model_validate_json(data, strict=True)
    except ValidationError:
        return None


def _file(uri: str, number: int) -> str:
    return storage.child(uri, f".calm-lock-{number}")


def _numbers(uri: str) -> list[int]:
    return [int(match[1]) for name in storage.names_in(uri) if (match := _NAME.fullmatch(name))]


def _newest(uri: str) -> tuple[int, bytes]:
    """The highest number of a folder's locks, and what is in its file; 0 and nothing where there is none."""
    number = max(_numbers(uri), default=0)
    with suppress(FileNotFoundError):  # it has just been removed
        return (number, storage.read(_file(uri, number), 0, _LARGEST) or b"?") if number else (0, b"")
    return 0, b""
