"""The evaluation as one self-contained HTML page."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files

import jinja2
import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from calm_core.store.facts import EvaluationFacts

_TEMPLATE = "report.html"

Curve = Sequence[Mapping[str, float]]


def render_report(evaluation: EvaluationFacts, curves: Mapping[tuple[str, str], Curve]) -> str:
    """HTML with the scores, the learning curves and the texts; pictures are inside.

    Args:
        evaluation: What was measured.
        curves: Points of training curves, by the picture's title and the curve's name.
    """
    source = files("calm_core.evaluation").joinpath(_TEMPLATE).read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    pictures = {"Brier-1 to Brier-4 with intervals": _brier_picture(evaluation)}
    pictures |= {title: _curve_picture(points, name, title) for (title, name), points in curves.items() if points}
    return environment.from_string(source).render(evaluation=evaluation, pictures=pictures)


def _brier_picture(evaluation: EvaluationFacts) -> str:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    numbers = sorted(evaluation.brier)
    scores = [evaluation.brier[n] for n in numbers]
    values = [100 * score.value for score in scores]
    low = [math.nan if score.low is None else 100 * (score.value - score.low) for score in scores]  # nan: no mark
    high = [math.nan if score.high is None else 100 * (score.high - score.value) for score in scores]
    unigram = [100 * evaluation.references.unigram.brier[n].value for n in numbers]
    places = range(len(numbers))
    axes.bar([p - 0.2 for p in places], values, 0.4, yerr=[low, high], capsize=4, label="this model")
    axes.bar([p + 0.2 for p in places], unigram, 0.4, label="tokens by frequency", color="0.75")
    axes.set_xticks(list(places), [f"Brier-{n}" for n in numbers])
    axes.set_ylabel("x 100")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.legend()
    return _as_png(figure)


def _curve_picture(curve: Curve, name: str, title: str) -> str:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for key, label in ((name, "training"), (f"validation_{name}", "validation")):
        if not (points := [(record["step"], record[key]) for record in curve if key in record]):
            continue
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, marker="." if len(points) < 30 else "")
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    axes.legend()
    return _as_png(figure)


def _as_png(figure: Figure) -> str:
    """A picture as base64 text, without anything that differs between two runs."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()
