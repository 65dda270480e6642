"""Pictures of a page, as elements of it: in its colours, told in words too, and the same bytes each time."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import matplotlib
from cycler import cycler
from markupsafe import Markup, escape

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter

from calm_core.store.facts import (
    Accuracy,
    AutoencoderQuality,
    Calibration,
    DatasetFacts,
    EvaluationFacts,
    PlaceScores,
    Score,
    WrittenTexts,
)
from calm_core.weights.curves import Curve

# Colours that stand in a picture for those of the page, which differ in light and dark.
_INK, *_SERIES = (f"#01010{number}" for number in range(1, 6))
_OF_THE_PAGE = {_INK: "currentColor"} | {
    colour: f"var(--{name})" for colour, name in zip(_SERIES, ("first", "second", "third", "fourth"), strict=True)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from outside
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), "none"),
    "axes.prop_cycle": cycler(color=_SERIES) + cycler(marker=["o", "s", "^", "D"]),
    "lines.markersize": 4,
    "errorbar.capsize": 3,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WIDTH, _HEIGHT = 4.5, 2.7  # inches: as wide as a phone's screen at the size of its text
_MOST_POINTS = 400  # of a line; a screen shows no more
_LONGEST_NAME = 24


def scores_of_models(scores: Mapping[str, Score]) -> Markup:
    """BrierLM of several models with their intervals, the first one above."""
    with _picture(height=0.9 + 0.38 * len(scores)) as (figure, axes):
        for place, score in enumerate(scores.values()):
            axes.errorbar(
                score.value, -place, xerr=_errors([score]), color=_SERIES[0 if place == 0 else 1], markersize=6
            )
            axes.annotate(f"{score.value:z.2f}", (score.value, -place), (0, 7), textcoords="offset points", ha="center")
        axes.set_yticks([-place for place in range(len(scores))], [_short(name) for name in scores])
        axes.set(xlabel="BrierLM", ylim=(0.5 - len(scores), 0.8))
        axes.margins(x=0.08)
        axes.grid(axis="x")
        told = ", ".join(f"{name} {score.value:z.2f} {score.interval()}" for name, score in scores.items())
        return _as_svg(figure, f"BrierLM with intervals: {told}")


def brier_terms(evaluation: EvaluationFacts) -> Markup:
    """Brier-1 to Brier-4 beside those of token frequency."""
    terms = {name: score for name, score in evaluation.shown().items() if name != "BrierLM"}
    unigram = evaluation.references.unigram.shown()
    with _picture() as (figure, axes):
        places = range(len(terms))
        axes.bar(
            [place - 0.2 for place in places],
            [score.value for score in terms.values()],
            0.4,
            yerr=_errors(list(terms.values())),
            label="this model",
            ecolor=_INK,
        )
        axes.bar([place + 0.2 for place in places], [unigram[n].value for n in terms], 0.4, label="token frequency")
        axes.set_xticks(list(places), list(terms))
        axes.axhline(0, color=_INK, linewidth=0.8)
        _name_lines(figure)
        told = ", ".join(f"{name} {score.value:z.2f} {score.interval()}" for name, score in terms.items())
        return _as_svg(figure, f"Bars, and for each the one of token frequency: {told}")


def training_curve(curve: Curve, name: str) -> Markup:
    """A metric over the steps, of training and of held-out text."""
    with _picture() as (figure, axes):
        told = []
        for key, label in ((name, "training"), (f"validation_{name}", "validation")):
            if not (points := [(record["step"], record[key]) for record in curve if key in record]):
                continue
            told.append(f"{label} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
            points = [*points[:: math.ceil(len(points) / _MOST_POINTS)], points[-1]]
            marker: dict[str, Any] = {} if len(points) < 30 else {"marker": ""}
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, **marker)
        axes.set(xlabel="step")
        axes.grid()
        _name_lines(figure)
        return _as_svg(figure, f"Lines over the steps: {', '.join(told)}")


def quality_against_compute(points: Mapping[str, tuple[float, Score]]) -> Markup:
    """BrierLM of models over the FLOPs of their training.

    Args:
        points: FLOPs and BrierLM by the model's name.
    """
    with _picture() as (figure, axes):
        for name, (flops, score) in points.items():
            axes.errorbar(flops, score.value, yerr=_errors([score]), linestyle="", markersize=6, label=_short(name))
        axes.set(xscale="log", xlabel="FLOPs of training", ylabel="BrierLM")
        least, most = min(flops for flops, _ in points.values()), max(flops for flops, _ in points.values())
        logarithmic = LogLocator(subs=(1, 2, 5) if most <= 30 * least else (1,))
        axes.xaxis.set_major_locator(MaxNLocator(3) if least < most <= 3 * least else logarithmic)
        axes.xaxis.set_major_formatter(lambda flops, _: f"{flops:.3g}".replace("e+", "e"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.25)
        axes.grid()
        _name_lines(figure)
        told = ", ".join(f"{name} {score.value:z.2f} after {flops:.2e}" for name, (flops, score) in points.items())
        return _as_svg(figure, f"BrierLM over the FLOPs of training: {told}")


def scores_over(
    label: str, lines: Mapping[str, Sequence[tuple[float, Score]]], names: Sequence[str] = (), scale: str = "linear"
) -> Markup:
    """BrierLM over a setting or a cost.

    Args:
        label: Of what it is shown over.
        lines: Its values and scores, by what else the models share; of more than four, points alone are drawn.
        names: Of the values 0, 1, ... of a setting that is no number.
        scale: Of the values: linear or log.
    """
    has_lines = len(lines) <= len(_SERIES)
    with _picture() as (figure, axes):
        for name, points in lines.items():
            own = {"label": _short(name)} if has_lines else {"linestyle": "", "color": _SERIES[0], "marker": "o"}
            found = sorted(points, key=lambda point: point[0])
            scores = [score for _, score in found]
            values = [score.value for score in scores]
            axes.errorbar([x for x, _ in found], values, yerr=_errors(scores), **cast(Any, own))
        if names:
            _name_places(axes, [_short(name) for name in names])
        axes.set(xscale=scale, xlabel=label, ylabel="BrierLM")
        axes.margins(0.12)
        axes.grid()
        if has_lines and len(lines) > 1:
            _name_lines(figure, columns=2)
        told = "; ".join(
            f"{name} " + ", ".join(f"{names[int(x)] if names else f'{x:g}'}: {score.value:z.2f}" for x, score in points)
            for name, points in lines.items()
        )
        return _as_svg(figure, f"BrierLM over {label}: {told}")


def by_place(places: Sequence[PlaceScores], label: str) -> Markup:
    """BrierLM by ranges of tokens."""
    with _picture() as (figure, axes):
        scores = [place.scores.brierlm for place in places]
        axes.errorbar(range(len(places)), [score.value for score in scores], yerr=_errors(scores))
        _name_places(axes, [f"{place.begin:,}" for place in places])
        axes.set(xlabel=f"{label}, at least", ylabel="BrierLM")
        axes.grid()
        told = ", ".join(
            f"{_range(place.begin, place.end - 1)} {score.value:z.2f}"
            for place, score in zip(places, scores, strict=True)
        )
        return _as_svg(figure, f"BrierLM by {label}: {told}")


def calibration(measured: Calibration) -> Markup:
    """How often a model is right, over how often its samples agree."""
    bins = [each for each in measured.bins if each.positions]
    most = max((each.positions for each in bins), default=1)
    with _picture() as (figure, axes):
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle="--", marker="", label="as sure as right")
        axes.plot([each.confidence for each in bins], [each.accuracy for each in bins], color=_SERIES[0], marker="")
        axes.scatter(
            [each.confidence for each in bins],
            [each.accuracy for each in bins],
            [8 + 60 * each.positions / most for each in bins],
            color=_SERIES[0],
            label="this model (larger: more places)",
        )
        axes.set(xlabel="share of samples that agree", ylabel="share that is right", xlim=(0, 1.03), ylim=(0, 1.03))
        axes.grid()
        _name_lines(figure)
        told = ", ".join(f"{each.confidence:.2f} sure, {each.accuracy:.2f} right" for each in bins)
        return _as_svg(figure, f"Share that is right over the share of samples that agree: {told}")


def accuracy_under_noise(quality: AutoencoderQuality) -> Markup:
    """Accuracy of an autoencoder over the noise on its latents."""
    with _picture() as (figure, axes):
        points = quality.under_noise
        for name in Accuracy.model_fields:
            axes.plot([each.scale for each in points], [100 * getattr(each, name) for each in points], label=name)
        axes.set(xlabel="standard deviation of the noise on the mean latent", ylabel="% that come back")
        axes.grid()
        _name_lines(figure)
        told = ", ".join(f"noise {each.scale:g}: {each.tokens:.2%} of tokens" for each in points)
        return _as_svg(figure, f"Share of tokens and chunks that come back: {told}")


def accuracy_by_frequency(quality: AutoencoderQuality) -> Markup:
    """Accuracy of an autoencoder by how often a token occurs."""
    groups = [each for each in quality.by_frequency if each.tokens]
    names = [_range(each.least, each.most) for each in groups]
    with _picture() as (figure, axes):
        axes.bar(range(len(groups)), [100 * each.accuracy for each in groups], 0.6)
        _name_places(axes, names)
        axes.set(xlabel="occurrences in training text", ylabel="% that come back")
        told = ", ".join(f"{name}: {each.accuracy:.2%}" for name, each in zip(names, groups, strict=True))
        return _as_svg(figure, f"Share of tokens that come back, by their occurrences in training text: {told}")


def diversity(written: Sequence[WrittenTexts]) -> Markup:
    """How varied texts are, over their temperature."""
    with _picture() as (figure, axes):
        temperatures = [each.temperature for each in written]
        lines = {
            f"distinct {n}-grams": [each.distinct[n] for each in written]
            for n in ("1", "2")
            if all(n in each.distinct for each in written)
        }
        lines["repeated 4-grams"] = [each.repetition for each in written]
        for name, shares in lines.items():
            axes.plot(temperatures, [100 * share for share in shares], label=name)
        axes.set(xlabel="temperature", ylabel="%", ylim=(-3, 103))
        axes.grid()
        _name_lines(figure, columns=2)
        told = "; ".join(f"{name} " + ", ".join(f"{s:.1%}" for s in shares) for name, shares in lines.items())
        return _as_svg(figure, f"Over the temperatures {', '.join(f'{t:g}' for t in temperatures)}: {told}")


def document_lengths(dataset: DatasetFacts) -> Markup:
    """How many documents have how many tokens."""
    totals = [sum(column) for column in zip(*(s.document_lengths for s in dataset.splits.values()), strict=True)]
    used = [place for place, count in enumerate(totals) if count]
    places = range(used[0], used[-1] + 1) if used else range(0)
    names = [f"{2**place:,}" for place in places]
    with _picture() as (figure, axes):
        axes.bar(range(len(places)), [totals[place] for place in places], 0.8)
        _name_places(axes, names)
        axes.set(xlabel="tokens in a document, at least", ylabel="documents")
        told = ", ".join(f"from {name}: {totals[place]:,}" for name, place in zip(names, places, strict=True))
        return _as_svg(figure, f"Documents by their tokens: {told}")


@contextmanager
def _picture(height: float = _HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.subplots()


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    """Names below the places 0, 1, ...; many of them aslant."""
    aslant: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(names) > 4 else {}
    axes.set_xticks(range(len(names)), names, **aslant)


def _name_lines(figure: Figure, columns: int = 3) -> None:
    """A legend above the picture, where it covers nothing."""
    figure.legend(loc="outside upper left", ncols=columns, columnspacing=1.2, handletextpad=0.5, borderpad=0)


def _errors(scores: Sequence[Score]) -> list[list[float]]:
    """How far intervals reach below and above; nan, which draws nothing, where one is unknown."""
    return [
        [math.nan if score.low is None else max(0.0, score.value - score.low) for score in scores],
        [math.nan if score.high is None else max(0.0, score.high - score.value) for score in scores],
    ]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _as_svg(figure: Figure, told: str) -> Markup:
    """A picture as an element of the page, without anything that differs between two runs.

    Args:
        figure: The picture.
        told: What it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    figure.draw_without_rendering()
    for axes in figure.axes:  # ticks that stay, or the layout makes room for others than are drawn
        axes.yaxis.set_major_locator(FixedLocator(axes.get_yticks().tolist()))
    with matplotlib.rc_context({"svg.hashsalt": told}):  # names of its parts: the same each time, and of it alone
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if f"#{match[1]}" in svg else "", svg)
    for colour, of_the_page in _OF_THE_PAGE.items():
        svg = svg.replace(colour, of_the_page)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(told)}" ', 1))
