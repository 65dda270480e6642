"""Progress of a partition, told now and then."""

import time

from calm_core.telemetry.progress import report

_REPORT_SECONDS = 2.0


class ProgressNote:
    """Reports how far a partition is, at most every other second.

    Args:
        stage: Name under which it is reported.
        total: Documents in all, 0 where that is not known.
    """

    def __init__(self, stage: str, total: int = 0) -> None:
        self._stage, self._total = stage, total
        self._started = time.monotonic()
        self._next = self._started + _REPORT_SECONDS

    @property
    def is_due(self) -> bool:
        """Whether something should be told again; asked for each document, so that a text is made only then."""
        return time.monotonic() >= self._next

    def tell(self, text: str, done: int = 0, tokens: int = 0) -> None:
        """Say how many documents are done, and how many tokens have come of them."""
        now = time.monotonic()
        self._next = now + _REPORT_SECONDS
        spent = max(now - self._started, 1e-9)
        left = spent * (self._total - done) / done if done else 0.0
        report(self._stage, done=done, total=self._total, rate=tokens / spent, eta=left, note=text)
