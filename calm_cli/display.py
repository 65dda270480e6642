"""Show a run's board: a live table in a terminal, plain lines elsewhere."""

import os
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from calm_cli.board import Board, Row
from calm_core.shown import visible
from calm_core.telemetry.progress import ProgressEvent

PLAIN_INTERVAL_SECONDS = 5.0

_STYLES = {"waiting": "dim", "running": "bold cyan", "done": "green", "cached": "green dim", "failed": "bold red"}
_STATE_WIDTH = max(map(len, _STYLES))
_STAGE_WIDTH = 48  # at most: no stage of ours has half of it, runs of a sweep may
_GAP = "  "
_SHORTEST_NOTE = 8
_NUMBER_AT_END = re.compile(r" [-+\d.,]+%?$")
# A wide and a short bar, and the room that a note keeps beside it; the whole number of a loss fits into the smaller.
_BARS = ((12, 28), (6, 14))


def clock(seconds: float) -> str:
    """Seconds as ``1:05`` or ``1:01:05``."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_parts(row: Row) -> list[str]:
    """How far a stage is: ``1,200/4,000``, ``12,345/s``, ``1:20 left``."""
    if row.event is None:
        return []
    event = row.event
    parts = [f"{event.done:,}/{event.total:,}"] if event.total else []
    if event.rate:
        parts.append(f"{event.rate:,.0f}/s")
    if event.eta and row.state == "running":
        parts.append(f"{clock(event.eta)} left")
    return parts


def cut(text: str, width: int, more: str) -> str:
    """A text of at most so many cells. A number at its end stays if it can, since it is what matters.

    Args:
        text: One line.
        width: In cells of the terminal.
        more: What stands for what is left out.
    """
    if cell_len(text) <= width:
        return text
    number = _NUMBER_AT_END.search(text)
    end = number[0] if number else ""
    room = width - cell_len(more) - cell_len(end)
    if room < 1:
        end, room = "", width - cell_len(more)
    return set_cell_size(text, room).rstrip() + more + end if room >= 0 else set_cell_size(text, width)


def board_lines(board: Board, now: float, width: int, height: int = 100, ascii_only: bool = False) -> list[Text]:
    """The board as lines: a heading, one for each stage, the total. What matters least gives way in a narrow terminal.

    Args:
        board: What is known.
        now: Seconds since the epoch.
        width: Cells that a line may have.
        height: Lines that there is room for; stages that wait longest are left out first.
        ascii_only: The terminal has no other characters.
    """
    more, shown = "..." if ascii_only else "…", _rows_that_fit(board.rows, max(height - 2, 1))
    total = clock(board.seconds(now))
    times = ["" if row.started is None else clock(row.seconds(now)) for row in shown]
    time_width = max(map(len, (*times, total, "00:00")))
    longest = min(max(len(row.stage) for row in board.rows), _STAGE_WIDTH)
    stage_width = min(longest, max(width - _STATE_WIDTH - len(_GAP), 1))
    room = width - stage_width - _STATE_WIDTH - time_width - 3 * len(_GAP)

    def line(stage: str, state: str, time: str, details: str, style: str = "", state_style: str = "") -> Text:
        text = Text(f"{cut(stage, stage_width, more):<{stage_width}}{_GAP}", style)
        text.append(f"{state:<{_STATE_WIDTH}}", state_style)
        if room >= -len(_GAP):
            text.append(f"{_GAP}{time:>{time_width}}")
        if room >= _SHORTEST_NOTE:
            text.append(f"{_GAP}{details}")
        text.rstrip()
        text.truncate(width)
        return text

    lines = [line("stage", "state", "time", "progress", "dim")]
    for row, time in zip(shown, times, strict=True):
        details = _details(row, room, more, "#-" if ascii_only else "━─")
        lines.append(line(row.stage, row.state, time, details, state_style=_STYLES[row.state]))
    return [*lines, line("total", "", total, "", "dim")]


def _rows_that_fit(rows: Sequence[Row], number: int) -> Sequence[Row]:
    begun = max((place for place, row in enumerate(rows) if row.state != "waiting"), default=0)
    first = max(0, begun + 1 - number)
    return rows[first : first + number]


def _details(row: Row, room: int, more: str, bar_signs: str) -> str:
    """What a stage says of itself, in so many cells; why one failed stands below the table."""
    if row.event is None or row.state in ("cached", "failed"):
        return ""
    note = visible(row.note)
    if row.state == "running" and row.event.total:
        return _running(row.event, note, room, more, bar_signs)
    rate = f"{_GAP}{row.event.rate:,.0f}/s" if row.event.rate else ""
    return note + rate if cell_len(note) + len(rate) <= room else cut(note, room, more)


def _running(event: ProgressEvent, note: str, room: int, more: str, bar_signs: str) -> str:
    share = min(max(event.done / event.total, 0.0), 1.0)
    parts = [f"{int(100 * share):3}%"]
    if event.eta:
        parts.append(f"{clock(event.eta)} left".ljust(len("00:00 left")))

    def left(*more_parts: str) -> int:
        return room - sum(len(part) + len(_GAP) for part in (*parts, *more_parts))

    for width, kept in _BARS:
        full = round(share * width)
        if left(bar := bar_signs[0] * full + bar_signs[1] * (width - full)) >= kept:
            parts.insert(0, bar)
            break
    widest = _BARS[0][1]
    rate = [f"{event.rate:,.0f}/s".rjust(9)] if event.rate else []
    for extra in (*rate, f"{event.done:,}/{event.total:,}"):
        if left(extra) >= widest:
            parts += [extra]
    if (rest := left()) >= _SHORTEST_NOTE:
        parts.append(cut(note, rest, more))
    return cut(_GAP.join(parts), room, more)


class Display(Protocol):
    """What shows a board while a run goes on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def refresh(self, now: float) -> None:
        """Show what has changed."""


class LiveDisplay:
    """A table that is drawn anew in its place.

    Terminals break lines that have become too long when they are made narrower, so what is drawn over is counted in
    rows of the present width.
    """

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console
        self._drawn: list[Text] = []

    def __enter__(self) -> Self:
        self._console.show_cursor(False)
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._console.show_cursor(True)

    def refresh(self, now: float) -> None:
        width, height = self._size()
        rows = sum(max(1, -(-line.cell_len // width)) for line in self._drawn)
        ascii_only = self._console.options.ascii_only
        # The last column stays free: some terminals break a line that fills it. So does the last line, for the cursor.
        self._drawn = board_lines(self._board, now, max(width - 1, 1), max(height - 1, 1), ascii_only)
        with self._console:  # all of it is written at once
            over = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * min(rows, height - 1)
            self._console.control(Control(ControlType.CARRIAGE_RETURN, *over))
            for line in self._drawn:
                self._console.print(line, soft_wrap=True)

    def _size(self) -> tuple[int, int]:
        """Columns and lines of the terminal, also where $COLUMNS says more or was true before."""
        width, height = self._console.size
        try:
            columns, lines = os.get_terminal_size(self._console.file.fileno())
        except (OSError, ValueError):  # it is none
            return width, height
        return min(width, columns or width), min(height, lines or height)


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
    """One stage as one line of text; why it failed is said at the end of the run."""
    if row.state == "cached":
        return f"{row.stage}: cached"
    parts = [f"{row.stage}: {row.state}", clock(row.seconds(now)), *progress_parts(row)]
    return _GAP.join([*parts, row.note] if row.note and row.state != "failed" else parts)


def display_for(board: Board, console: Console) -> Display:
    """The display that fits the console: a terminal that can be drawn over, or anything else."""
    drawable = console.is_interactive and console.file.isatty()
    return LiveDisplay(board, console) if drawable else PlainDisplay(board, console)
