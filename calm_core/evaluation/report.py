"""The evaluation as one self-contained HTML page.

The same evaluation gives the same bytes, since the page takes part in the artifact's digest. So it holds digests and
settings, but neither a date nor a code version: those stand in the manifest.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
import matplotlib
from cycler import cycler
from markupsafe import Markup, escape

matplotlib.use("Agg")
from matplotlib.figure import Figure

from calm_core.shown import lines_of
from calm_core.store.facts import EvaluationFacts, Score

_TEMPLATE = "report.html"
# Colours that stand in a picture for those of the page, which differ in light and dark.
_INK, _FIRST, _SECOND = "#010101", "#010102", "#010103"
_OF_THE_PAGE = {_INK: "currentColor", _FIRST: "var(--first)", _SECOND: "var(--second)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "calm",  # names of parts are the same each time
    "font.size": 11,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), "none"),
    "axes.prop_cycle": cycler(color=[_FIRST, _SECOND]),
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Curve = Sequence[Mapping[str, float]]


def render_report(
    evaluation: EvaluationFacts,
    curves: Mapping[tuple[str, str], Curve],
    settings: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    parents: Mapping[str, str],
) -> str:
    """HTML with the scores, the learning curves, the texts and the settings; pictures are inside.

    Args:
        evaluation: What was measured.
        curves: Points of training curves, by the picture's title and the curve's name.
        settings: Of the evaluation.
        models: Settings of each model, by its name.
        parents: Digests of what was evaluated, by kind.
    """
    source = files("calm_core.evaluation").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    with matplotlib.rc_context(_STYLE):
        pictures = {"Brier-1 to Brier-4, times 100, with intervals": _brier_picture(evaluation)}
        pictures |= {title: _curve_picture(points, name) for (title, name), points in curves.items() if points}
    return environment.from_string(source).render(
        evaluation=evaluation,
        scores=evaluation.shown(),
        unigram=evaluation.references.unigram.shown(),
        untrained=evaluation.references.untrained.shown(),
        pictures=pictures,
        settings=dict(_flat(settings)),
        models={name: dict(_flat(values)) for name, values in models.items()},
        parents=parents,
        number=_number,
        shown=lambda value: lines_of(str(value)),
    )


def _number(score: Score) -> str:
    return f"{score.value:z.2f}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names; unset ones, and the prompts, which stand above their texts, are left out."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None and name != "prompts":
            yield prefix + name, value


def _figure() -> Figure:
    return Figure(figsize=(6.4, 3.2), layout="constrained")


def _brier_picture(evaluation: EvaluationFacts) -> Markup:
    terms = {name: score for name, score in evaluation.shown().items() if name != "BrierLM"}
    unigram = evaluation.references.unigram.shown()
    values = [score.value for score in terms.values()]
    low = [math.nan if score.low is None else score.value - score.low for score in terms.values()]  # nan: no mark
    high = [math.nan if score.high is None else score.high - score.value for score in terms.values()]
    places = range(len(terms))
    figure = _figure()
    axes = figure.subplots()
    axes.bar([p - 0.2 for p in places], values, 0.4, yerr=[low, high], capsize=4, label="this model", ecolor=_INK)
    axes.bar([p + 0.2 for p in places], [unigram[name].value for name in terms], 0.4, label="token frequency")
    axes.set_xticks(list(places), list(terms))
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.legend()
    told = ", ".join(f"{name} {_number(score)} {score.interval()}" for name, score in terms.items())
    return _as_svg(figure, f"Bars, and for each the one of token frequency: {told}")


def _curve_picture(curve: Curve, name: str) -> Markup:
    figure = _figure()
    axes = figure.subplots()
    told = []
    for key, label in ((name, "training"), (f"validation_{name}", "validation")):
        if not (points := [(record["step"], record[key]) for record in curve if key in record]):
            continue
        told.append(f"{label} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, marker="." if len(points) < 30 else "")
    axes.set(xlabel="step")
    axes.grid(color=_INK, alpha=0.15)
    axes.legend()
    return _as_svg(figure, f"Lines over the steps: {', '.join(told)}")


def _as_svg(figure: Figure, told: str) -> Markup:
    """A picture as an element of the page, in its colours, without anything that differs between two runs.

    Args:
        figure: The picture.
        told: What it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, of_the_page in _OF_THE_PAGE.items():
        svg = svg.replace(colour, of_the_page)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(told)}" ', 1))
