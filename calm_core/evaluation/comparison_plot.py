"""A picture of a comparison: scores and differences, each with its interval."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calm_core.store.facts import Difference, Score

PlotFormat = Literal["png", "svg", "pdf"]

_INK, _PAPER = "#1b1b1f", "#ffffff"
_COLOURS = {"better": "#2a8f5b", "worse": "#c8503c", "undecided": "#80808a"}
_BASE = "#4f74c9"
_MARKS = {"better": "o", "worse": "s", "undecided": "D"}  # colours alone do not reach everybody
# A browser shows an SVG in the reader's theme.
_DARK = "<style>@media (prefers-color-scheme: dark) { svg { filter: invert(0.9) hue-rotate(180deg) } }</style>"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "calm",  # names of parts are the same each time
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), _PAPER),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
}


def draw(names: Sequence[str], scores: Sequence[Score], found: Sequence[Difference], file_format: PlotFormat) -> bytes:
    """The picture as a file's bytes; equal arguments give equal ones.

    Args:
        names: Of the models, which begin with their numbers.
        scores: BrierLM of each.
        found: Of each model but the first, its scores less those of the first.
        file_format: Of the file.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 1.9 + 0.6 * len(names)), layout="constrained")
        above, below = figure.subplots(2, 1, height_ratios=[len(names) + 0.5, len(names) - 0.5])
        verdicts = [each.verdict for each in found]
        _intervals(above, dict(zip(names, scores, strict=True)), ["", *verdicts], sign="z")
        above.set_title("BrierLM", loc="left", fontsize="medium")
        _intervals(below, dict(zip(names[1:], [each.brierlm for each in found], strict=True)), verdicts, sign="+z")
        below.axvline(0, color=_INK, linewidth=0.8)
        below.set_title("difference to 1", loc="left", fontsize="medium")
        below.set_xlabel(f"{100 * found[0].confidence:.4g} % of such intervals hold the true number")
        buffer = io.BytesIO()
        metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=file_format, dpi=160, metadata=metadata[file_format])
    data = buffer.getvalue()
    return data.replace(b"<defs>", _DARK.encode() + b"<defs>", 1) if file_format == "svg" else data


def _intervals(axes: Axes, scores: Mapping[str, Score], verdicts: Sequence[str], sign: str) -> None:
    """A line for each score, the first one on top."""
    places = range(len(scores))
    for place, score, verdict in zip(places, scores.values(), verdicts, strict=True):
        colour = _COLOURS.get(verdict, _BASE)
        if score.low is not None and score.high is not None:
            axes.plot([score.low, score.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([score.value], [place], _MARKS.get(verdict, "o"), color=colour, markersize=7)
        axes.annotate(
            f"{score.value:{sign}.2f} {score.interval()}",
            (score.value, place),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize="small",
            bbox={"boxstyle": "square,pad=0.1", "color": _PAPER, "alpha": 0.8},  # a line may be behind it
        )
    axes.set_yticks(list(places), list(scores))
    axes.set_ylim(len(scores) - 0.5, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_INK, alpha=0.12)
    axes.set_axisbelow(True)
