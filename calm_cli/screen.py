"""The terminal: all that the command line shows goes through it."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from rich.console import Console
from rich.segment import Segment

from calm_core.shown import shortened, visible

_SILENT_SECONDS = 5.0


class Screen(Console):
    """rich's console for text from outside.

    Such text is neither markup (`[red]`) nor emoji code (`:warning:`), and its control characters are seen instead of
    acting on the terminal; only rich's own do.

    Args:
        options: Of the console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:  # all that is written passes here, on its way out
        return super()._render_buffer(
            segment if segment.control else segment._replace(text=visible(segment.text, keep="\n\t"))
            for segment in buffer
        )


@contextmanager
def told(screen: Screen) -> Iterator[Callable[[str], None]]:
    """Say what is at work where it takes long, all in all; yields what gets it, e.g. "loading out/calm"."""
    timers: list[Timer] = []
    said_at = time.monotonic()

    def say(doing: str) -> None:
        nonlocal said_at
        said_at = time.monotonic()
        screen.print(f"{shortened(doing)} ...", soft_wrap=True)

    def tell(doing: str) -> None:
        for timer in timers:
            timer.cancel()
        timers.append(Timer(max(0.0, said_at + _SILENT_SECONDS - time.monotonic()), say, (doing,)))
        timers[-1].daemon = True
        timers[-1].start()

    try:
        yield tell
    finally:
        for timer in timers:
            timer.cancel()
