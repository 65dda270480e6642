"""Show a run's board: a live table in a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from calm_cli.board import Board, Row

PLAIN_INTERVAL_SECONDS = 15.0

_STYLES = {"waiting": "dim", "running": "bold cyan", "done": "green", "cached": "green dim", "failed": "bold red"}


def clock(seconds: float) -> str:
    """Seconds as ``1:05`` or ``1:01:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_text(row: Row) -> str:
    """How far a stage is: ``1,200/4,000  12,345/s  1:20 left``."""
    if row.event is None:
        return ""
    event = row.event
    parts = [f"{event.done:,}/{event.total:,}"] if event.total else []
    if event.rate:
        parts.append(f"{event.rate:,.0f}/s")
    if event.eta and row.state == "running":
        parts.append(f"{clock(event.eta)} left")
    return "  ".join(parts)


def board_table(board: Board, now: float) -> Table:
    """The board as a table, one line for each stage."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("stage", "state", "time", "", "progress", ""):
        table.add_column(
            heading, header_style="dim", no_wrap=heading != "", justify="right" if heading == "time" else "left"
        )
    for row in board.rows:
        event = row.event
        bar = ProgressBar(event.total, event.done, width=12) if event and event.total and row.state == "running" else ""
        table.add_row(
            row.stage,
            Text(row.state, _STYLES[row.state]),
            "" if row.started is None else clock(row.seconds(now)),
            bar,
            progress_text(row),
            Text(row.note if row.state != "cached" else "", overflow="ellipsis"),
        )
    return table


class Display(Protocol):
    """What shows a board while a run goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def refresh(self, now: float) -> None:
        """Show what has changed."""


class LiveDisplay:
    """A table that is drawn anew in its place."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._live = Live(console=console, auto_refresh=False, get_renderable=lambda: board_table(board, time.time()))

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(error_type, error, trace)

    def refresh(self, now: float) -> None:
        self._live.refresh()


class PlainDisplay:
    """One line when a stage changes its state, and one for its progress every PLAIN_INTERVAL_SECONDS."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console
        self._shown: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def refresh(self, now: float) -> None:
        for row in self._board.rows:
            state, shown_at = self._shown.get(row.stage, ("waiting", now))
            overdue = row.state == "running" and now - shown_at >= PLAIN_INTERVAL_SECONDS
            if row.state != state or overdue:
                self._shown[row.stage] = (row.state, now)
                self._console.print(plain_line(row, now), soft_wrap=True)


def plain_line(row: Row, now: float) -> str:
    """One stage as one line of text."""
    if row.state == "cached":
        return f"{row.stage}: cached"
    time_text = clock(row.seconds(now))
    return "  ".join(part for part in (f"{row.stage}: {row.state}", time_text, progress_text(row), row.note) if part)


def display_for(board: Board, console: Console) -> Display:
    """The display that fits the console."""
    return LiveDisplay(board, console) if console.is_terminal else PlainDisplay(board, console)
