"""What MLflow is told, kept on this machine's disk until it has been: a file of JSON lines for each run.

Whoever tells something only appends a line. One process at a time, the one that holds a file's lock, sends its lines in
their order, and notes how far it has come in a cursor beside it. What a process leaves behind, another one sends later.
"""

import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from calm_core.errors import CalmError
from calm_core.shown import brief

OUTBOX_VARIABLE = "CALM_OUTBOX"
"""Names the folder of the outbox."""
MOST_BYTES = 64 << 20
"""Of a run's file; beyond it no more points of curves are kept. A point of 15 metrics takes some 400 bytes."""
MOST_METRICS, MOST_VALUES = 1000, 100
"""What MLflow takes at once: metrics, and parameters or tags."""

_MOST_IN_MEMORY = 10_000  # records that no disk takes
_EMPTIED_BYTES = 1 << 20  # a file of this size is emptied once all of it has been sent
_RUN_ID = re.compile(r"[A-Za-z0-9][\w-]{0,127}", re.ASCII)


Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run of MLflow's ends."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metrics(_Record):
    """A point of the curves.

    Attributes:
        time: When it was made, in milliseconds since the epoch.
        step: Of the training.
        values: Its numbers by name; they may be no finite ones.
    """

    kind: Literal["metrics"] = "metrics"
    time: int
    step: int
    values: dict[str, float] = Field(max_length=MOST_METRICS)


class Parameters(_Record):
    """What the run works with."""

    kind: Literal["parameters"] = "parameters"
    values: dict[str, str] = Field(max_length=MOST_VALUES)


class Tags(_Record):
    """What the run is found by."""

    kind: Literal["tags"] = "tags"
    values: dict[str, str] = Field(max_length=MOST_VALUES)


class Text(_Record):
    """A file of the run."""

    kind: Literal["text"] = "text"
    name: str = Field(pattern=r"^\w[\w.-]{0,99}$")
    text: str


class End(_Record):
    """How the run has ended, and when (milliseconds since the epoch)."""

    kind: Literal["end"] = "end"
    time: int
    status: Status


Record = Metrics | Parameters | Tags | Text | End
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


def now_milliseconds() -> int:
    """The time as MLflow counts it."""
    return time.time_ns() // 1_000_000


class Kept(NamedTuple):
    """A record as it is kept.

    Attributes:
        record: None where its line is damaged.
        end: Where it ends in the file, in bytes; 0 for one that is in memory alone.
    """

    record: Record | None
    end: int


class Outbox:
    """The records of one run, in the order in which they were told.

    A disk that is full, or away, raises nothing: records wait in memory then, and those that find no room are counted.

    Args:
        place: Where MLflow is, as `place_of` tells it.
        run_id: MLflow's id of the run.

    Raises:
        CalmError: That is no id of a run.

    Attributes:
        lost: Records that found no room.
    """

    def __init__(self, place: str, run_id: str) -> None:
        if not _RUN_ID.fullmatch(run_id):
            raise CalmError(f"{place}: MLflow names a run {brief(run_id)}, which is no id; check that server")
        self.path = outbox_folder() / f"{_prefix(place)}{run_id}.jsonl"
        self.run_id = run_id
        self.lost = 0
        self._cursor_path, self._lock_path = self.path.with_suffix(".cursor"), self.path.with_suffix(".lock")
        self._cursor: int | None = None  # not read yet
        self._memory: deque[Record] = deque()
        self._memory_lock = threading.Lock()
        self._lock: int | None = None

    def add(self, *records: Record) -> None:
        """Keep records; never fails, and waits for nothing but this machine's disk."""
        with self._memory_lock:
            for record in records:
                if len(self._memory) == _MOST_IN_MEMORY:
                    self._write_memory()
                if len(self._memory) < _MOST_IN_MEMORY:
                    self._memory.append(record)
                else:
                    self.lost += 1
            if self._memory:
                self._write_memory()

    @property
    def in_memory(self) -> int:
        """Records that are not on disk."""
        return len(self._memory)

    def _write_memory(self) -> None:
        """Bring to disk what waits in memory; where that fails, it goes on waiting."""
        with suppress(OSError), self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            size = os.fstat(file).st_size
            if size >= MOST_BYTES:
                fitting = [record for record in self._memory if not isinstance(record, Metrics | Text)]
                self.lost += len(self._memory) - len(fitting)
                self._memory = deque(fitting)
            torn = size and os.pread(file, 1, size - 1) != b"\n"  # its writer was killed
            lines = [json.dumps(record.model_dump()) for record in self._memory]
            text = "".join(f"{line}\n" for line in (["", *lines] if torn else lines)).encode()
            try:
                whole = os.write(file, text) == len(text)
            except OSError:
                whole = False
            if whole:
                self._memory.clear()
            else:
                os.ftruncate(file, size)

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        """The file, which nobody else changes while the block lasts.

        Raises:
            OSError: It cannot be opened.
        """
        while True:
            file = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file).st_nlink:  # else it was removed in between
                    yield file
                    return
            finally:
                os.close(file)

    def take(self) -> bool:
        """Become the one process that sends these records; False where another one is.

        Where no lock can be made, no other process has records here either.
        """
        try:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return True
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        self._cursor = None  # of another process, before
        return True

    def give_back(self) -> None:
        """Let another process send what is left."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def unsent(self) -> Iterator[Kept]:
        """The records that have not been sent yet, in their order."""
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            end = self._position(os.fstat(file.fileno()).st_size)
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):  # somebody writes it now
                    break
                end += len(line)
                yield Kept(_parsed(line), end)
        with self._memory_lock:
            waiting = list(self._memory)
        for record in waiting:
            yield Kept(record, 0)

    def sent(self, kept: list[Kept]) -> None:
        """Note that the first of the unsent records have been sent."""
        for one in kept:
            if one.end:
                self._cursor = one.end
                continue
            with self._memory_lock:  # where it has found room on the disk since, it is sent again, which MLflow sees
                if self._memory and self._memory[0] is one.record:
                    self._memory.popleft()
        if any(one.end for one in kept):
            self._write_cursor()
            if (self._cursor or 0) >= _EMPTIED_BYTES:
                self._empty()

    def _position(self, size: int) -> int:
        if self._cursor is None:
            try:
                self._cursor = int(self._cursor_path.read_text())
            except (OSError, ValueError):  # nothing was sent, or it cannot be known: MLflow takes the same point once
                self._cursor = 0
        return self._cursor if 0 <= self._cursor <= size else 0

    def _write_cursor(self) -> None:
        temporary = self._cursor_path.with_suffix(".cursor-new")
        with suppress(OSError):  # on a full disk, a process after this one would send some of it again
            temporary.write_text(str(self._cursor))
            temporary.replace(self._cursor_path)

    def _empty(self) -> None:
        """Make a file small whose records have all been sent; one that is cut short after the cursor is sent again."""
        with suppress(OSError), self._opened(os.O_WRONLY) as file:
            if os.fstat(file).st_size == self._cursor:
                self._cursor = 0
                self._write_cursor()
                os.ftruncate(file, 0)

    def remove(self) -> None:
        """Remove the files, if all that is in them has been sent."""
        with suppress(OSError), self._opened(os.O_RDONLY) as file:
            size = os.fstat(file).st_size
            if self._position(size) == size:
                self._cursor_path.unlink(missing_ok=True)
                self.path.unlink()
                self._lock_path.unlink(missing_ok=True)
                self._cursor = 0

    def count(self) -> int:
        """How many records are left."""
        return sum(1 for _ in self.unsent())


def outboxes(place: str) -> Iterator[Outbox]:
    """All that is kept for an MLflow, also by processes that are at work."""
    with suppress(OSError):
        prefix = _prefix(place)
        for path in sorted(outbox_folder().glob(f"{prefix}*.jsonl")):
            with suppress(CalmError):  # another file than ours
                yield Outbox(place, path.stem.removeprefix(prefix))


def move(folder: Path, old: str, new: str) -> None:
    """Let what is kept for one MLflow be for another one: its database has been moved, and the outbox with it.

    Args:
        folder: The outbox.
        old, new: Places of that database.
    """
    with suppress(OSError):
        for path in folder.glob(f"{_prefix(old)}*"):
            path.rename(folder / f"{_prefix(new)}{path.name.removeprefix(_prefix(old))}")


def outbox_folder() -> Path:
    """Where outboxes are kept: $CALM_OUTBOX; else below the user's state folder, or below /tmp where it is read-only.

    Nobody else can read them.
    """
    if named := os.environ.get(OUTBOX_VARIABLE):
        folders = [Path(named).absolute()]
    else:
        # Of a Path this would be an error where the user has no home.
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111
        # Not $TMPDIR: that of a training's ranks is removed with them.
        folders = [Path(state) / "calm" / "outbox", Path(f"/tmp/calm-outbox-{os.getuid()}")]
    return next(filter(_usable, folders), folders[-1])


def _usable(folder: Path) -> bool:
    """Whether a folder is, or has been made, one that this user alone writes to."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK)
    return False


def _prefix(place: str) -> str:
    return f"{hashlib.sha256(place.encode()).hexdigest()[:12]}-"


def _parsed(line: bytes) -> Record | None:
    try:
        return _RECORD.validate_json(line)
    except ValueError:
        return None
