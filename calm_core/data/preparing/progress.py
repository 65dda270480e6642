"""How far preparing is."""

import time

from calm_core.telemetry.progress import report

STAGE = "prepare"
_SECONDS = 2.0  # between two reports of one partition


class Progress:
    """Reports of the work on one partition, now and then.

    Args:
        total: Documents in all, 0 where that is not known.

    Example:
        >>> if progress.is_due():
        ...     progress.tell("partition 3: 12,000 tokens", done=50, tokens=12_000)
    """

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self._started = time.monotonic()
        self._next = self._started + _SECONDS

    def is_due(self) -> bool:
        """Whether nothing has been said for a while."""
        return time.monotonic() >= self._next

    def tell(self, note: str, done: int = 0, tokens: int = 0) -> None:
        """Say how many documents are done, and how many tokens have come of them."""
        now = time.monotonic()
        self._next = now + _SECONDS
        spent = max(now - self._started, 1e-9)
        left = spent * (self._total - done) / done if done else 0.0
        report(STAGE, done=done, total=self._total, rate=tokens / spent, eta=left, note=note)
