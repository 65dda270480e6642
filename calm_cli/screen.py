"""The terminal: all that the command line shows goes through it."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from calm_core.shown import visible


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
