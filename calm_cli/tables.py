"""Tables of plain lines: nothing is cut or broken, so that whole names can be copied, also out of a pipe."""

from collections.abc import Collection, Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from calm_core.shown import visible

_GAP = "  "


def show_pairs(lines: Iterable[tuple[str, str]], console: Console) -> None:
    """Print names and values, one a line."""
    show_table([], [[name, value] for name, value in lines], console)


def show_table(
    heading: Sequence[str], rows: Iterable[Sequence[str]], console: Console, right: Collection[int] = ()
) -> None:
    """Print rows below a heading; the first column holds their names.

    Args:
        heading: Of each column; empty, none is shown.
        rows: As many cells each.
        console: Where.
        right: Columns whose cells end below each other.
    """
    lines = [[visible(cell) for cell in row] for row in ((heading,) if heading else ()) + tuple(rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        text = Text(style="dim" if heading and not number else "")
        for place, (cell, width) in enumerate(zip(line, widths, strict=True)):
            blank = " " * (width - cell_len(cell))
            text.append(blank + cell if place in right else cell + blank, "" if place else "dim").append(_GAP)
        text.rstrip()
        console.print(text, soft_wrap=True)
