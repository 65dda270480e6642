"""How far preparing is."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from calm_core.data.sources.partitions import Partition
from calm_core.telemetry.progress import report

STAGE = "prepare"
_SECONDS = 2.0  # between two reports
_SHARING_SECONDS = 0.2  # between two looks at what the others have done
_DONE, _COUNTED, _KEPT, _NEXT = range(4)


def of_partition(partitions: Sequence[Partition]) -> str:
    """The beginning of what is said of a partition; empty for several."""
    return f"partition {partitions[0].index}: " if len(partitions) == 1 else ""


class Counts(Protocol):
    """Numbers that all processes which are at work on a step share."""

    def get_lock(self) -> AbstractContextManager[object]: ...
    def __getitem__(self, index: int, /) -> float: ...
    def __setitem__(self, index: int, value: float, /) -> None: ...
    def __len__(self) -> int: ...


class _Own(list[float]):
    """The numbers of a process that works alone."""

    def get_lock(self) -> AbstractContextManager[object]:
        return nullcontext()


counts: Counts = _Own([0.0] * 4)


class Progress:
    """Reports of a step, now and then, of what all processes together have done since it began.

    Args:
        note: What is said of it, with {done} and {counted} for the two numbers.
        total: Documents in all, 0 where that is not known.

    Example:
        >>> progress = Progress("{counted:,} tokens", total=3_000)
        >>> progress.add(done=1, counted=250)
    """

    def __init__(self, note: str, total: int = 0) -> None:
        self._note, self._total = note, total
        self._done = self._counted = 0  # what the others do not know of yet
        self._started = time.monotonic()  # of the machine: the same in all of its processes
        self._next = 0.0
        with counts.get_lock():
            for index, value in ((_DONE, 0), (_COUNTED, 0), (_KEPT, 0), (_NEXT, self._started + _SECONDS)):
                counts[index] = value

    def add(self, done: int, counted: int) -> None:
        """Documents that are done, and how much has come of them."""
        self._done += done
        self._counted += counted
        if time.monotonic() >= self._next:
            self.share()

    def keep(self, done: int) -> None:
        """Documents that an earlier run has done."""
        with counts.get_lock():
            counts[_KEPT] += done

    def share(self) -> None:
        """Let the others know, and report where nothing has been said for a while."""
        now = time.monotonic()
        with counts.get_lock():
            counts[_DONE] += self._done
            counts[_COUNTED] += self._counted
            if is_due := now >= counts[_NEXT]:
                counts[_NEXT] = now + _SECONDS
        self._done = self._counted = 0
        self._next = now + _SHARING_SECONDS
        if is_due:
            self.tell()

    def tell(self) -> None:
        """Report."""
        with counts.get_lock():
            done, counted, kept = (int(counts[index]) for index in (_DONE, _COUNTED, _KEPT))
        spent = max(time.monotonic() - self._started, 1e-9)
        known = bool(self._total)
        report(
            STAGE,
            done=done + kept if known else 0,
            total=self._total,
            rate=counted / spent if known else 0.0,
            eta=spent * max(self._total - kept - done, 0) / done if known and done else 0.0,
            note=self._note.format(done=done + kept, counted=counted),
        )
