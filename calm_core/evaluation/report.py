"""A self-contained HTML page: of one evaluation, or of the whole run that it belongs to.

The same evaluation gives the same bytes, since its page takes part in the artifact's digest. So the page of an
evaluation alone holds digests and settings, but no date, no seconds, and no code version.
"""

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import jinja2
from markupsafe import Markup

from calm_core.evaluation import pictures
from calm_core.shown import by_dotted_name, lines_of
from calm_core.store.facts import (
    DatasetFacts,
    EvaluationFacts,
    ModelFacts,
    Perplexity,
    RegistrationFacts,
    StageTime,
    TrainingCost,
)
from calm_core.weights.curves import Curve

PAGE_NAME = "report.html"
"""Of the page in an artifact."""
MAIN_STAGES = ("prepare", "train-autoencoder", "train-calm", "evaluate", "register")
BASELINE_STAGES = ("train-transformer", "evaluate-transformer")
_MOST_TEXTS, _LONGEST_TEXT = 40, 4000  # prompts, and characters of each text
_MOST_SOURCES = 20
_LONGEST_VALUE = 2000  # characters of a setting


@dataclass(frozen=True)
class WholeRun:
    """What a page tells beside an evaluation, as far as it is there.

    Attributes:
        models: By the names of `settings` of `render_report`.
        registration: What has become of the model.
        champion, baseline: Scores of the version that was champion before, and of the Transformer of the same run.
        not_compared: Why other scores are left out, a line each.
        stages: In their order.
        command: That started the run.
        code_version: Of what has trained the model.
        written: When the page was.
    """

    dataset: DatasetFacts | None = None
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    registration: RegistrationFacts | None = None
    champion: EvaluationFacts | None = None
    baseline: EvaluationFacts | None = None
    not_compared: Sequence[str] = ()
    stages: Sequence[StageTime] = ()
    command: str = ""
    code_version: str = ""
    written: str = ""

    @property
    def others(self) -> dict[str, EvaluationFacts]:
        """What the model is compared with, by name."""
        named = {"champion": self.champion, "baseline": self.baseline}
        return {name: facts for name, facts in named.items() if facts}


@dataclass(frozen=True)
class Verdict:
    """What a page begins with: what has become of the model, why, and whether that is a success."""

    headline: str
    reason: str = ""
    promoted: bool | None = None

    @classmethod
    def of(cls, registration: RegistrationFacts) -> "Verdict":
        """The verdict on a registered model."""
        name = f"{registration.model_name} version {registration.version}"
        told = f"{name} is {registration.alias}" if registration.promoted else f"{name} is not {registration.alias}"
        return cls(told, registration.reason, registration.promoted)


def render_report(
    evaluation: EvaluationFacts,
    curves: Mapping[tuple[str, str], Curve],
    settings: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    parents: Mapping[str, str],
    run: WholeRun | None = None,
) -> str:
    """A page with the verdict, the scores, the learning curves, the texts and the settings; pictures are inside.

    Args:
        evaluation: What was measured.
        curves: Points of training curves, by the picture's title and the curve's name.
        settings: Of the evaluation.
        models: Settings of each model, by its name.
        parents: Digests of what the page tells of, by kind.
        run: What else is told; unset, the page is of the evaluation alone.
    """
    told, texts = run or WholeRun(), _texts(evaluation, settings)
    return _template("report.html").render(
        evaluation=evaluation,
        run=told,
        is_whole=run is not None,
        verdict=Verdict.of(told.registration) if told.registration else Verdict(evaluation.model),
        scores=evaluation.shown(),
        unigram=evaluation.references.unigram.shown(),
        untrained=evaluation.references.untrained.shown(),
        perplexities=_perplexities({"this model": evaluation} | told.others),
        curves=_curves(curves),
        compute=_compute(evaluation, told) if run else None,
        costs=_costs(evaluation, told) if run else {},
        texts=dict(list(texts.items())[:_MOST_TEXTS]),
        left_out=max(0, len(texts) - _MOST_TEXTS),
        settings=_named(settings),
        models={name: _named(values) for name, values in models.items()},
        parents=parents,
        pictures=pictures,
        most_sources=_MOST_SOURCES,
        main_stages=_stages(told, MAIN_STAGES),
        baseline_stages=_stages(told, BASELINE_STAGES),
    )


def render_training(title: str, facts: ModelFacts, curves: Mapping[tuple[str, str], Curve]) -> str:
    """A page with the curves and numbers of one training.

    Args:
        title: Heads the page.
        facts: Of the model.
        curves: As of `render_report`.
    """
    return _template("training.html").render(title=title, facts=facts, curves=_curves(curves))


def render_sweep(title: str, heading: Sequence[str], rows: Sequence[Sequence[str]], drawn: Mapping[str, Markup]) -> str:
    """A page with the table of a sweep, below its pictures by their captions."""
    return _template("sweep.html").render(title=title, heading=heading, rows=rows, drawn=drawn)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("calm_core.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda score: f"{score.value:z.2f}",
        "count": lambda value: f"{value:,}",
        "percent": _percent,
        "power": _power,
        "duration": _duration,
        "shown": lambda value: lines_of(str(value)),
        "sha256": lambda text: f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}",
    }
    return environment.get_template(name)


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:z.{digits}f}\N{NO-BREAK SPACE}%"


def _power(value: float) -> str:
    """A large number with three digits and its power of ten."""
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.2e}".replace("e+", "e")


def _duration(seconds: float) -> str:
    """Seconds in words, the two largest units."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _named(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings by their dotted names; unset ones, and the prompts, which stand above their texts, are left out."""
    named = {name: str(value) for name, value in by_dotted_name(settings) if value is not None and name != "prompts"}
    return {name: _cut(value, _LONGEST_VALUE) for name, value in named.items()}


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _curves(curves: Mapping[tuple[str, str], Curve]) -> dict[str, Markup]:
    return {title: pictures.training_curve(points, name) for (title, name), points in curves.items() if points}


def _stages(run: WholeRun, names: Sequence[str]) -> list[StageTime]:
    told = {stage.stage: stage for stage in run.stages}
    return [told[name] for name in names if name in told]


def _costs(evaluation: EvaluationFacts, run: WholeRun) -> dict[str, TrainingCost]:
    """What the trainings of the run have cost; where the evaluation does not say it, as far as the models do."""
    known = {
        facts.kind: TrainingCost(tokens=facts.trained_tokens, seconds=facts.seconds)
        for facts in run.models.values()
        if facts.trained_tokens is not None
    }
    return (evaluation.costs or known) | (run.baseline.costs if run.baseline else {})


def _compute(evaluation: EvaluationFacts, run: WholeRun) -> Markup | None:
    """The picture of quality against compute; None unless it is known of this model and another one."""
    points = {
        name: (flops, facts.brierlm)
        for name, facts in {"this model": evaluation, **run.others}.items()
        if (flops := math.fsum(cost.flops or 0 for cost in facts.costs.values()))
    }
    return pictures.quality_against_compute(points) if "this model" in points and len(points) > 1 else None


def _perplexities(evaluations: Mapping[str, EvaluationFacts]) -> dict[str, Perplexity]:
    """Of those that tell it, by name."""
    told = {name: one.language_model.perplexity for name, one in evaluations.items() if one.language_model}
    return {name: perplexity for name, perplexity in told.items() if perplexity}


def _texts(evaluation: EvaluationFacts, settings: Mapping[str, Any]) -> dict[str, dict[float, str]]:
    """By prompt, and then by temperature, the first text; long ones are cut."""
    by_temperature = {float(settings.get("temperature", 1)): evaluation.samples}
    by_temperature |= {each.temperature: each.texts for each in evaluation.written}
    found: dict[str, dict[float, str]] = {}
    for temperature, samples in sorted(by_temperature.items()):
        for sample in samples:
            found.setdefault(_end(sample.prompt), {}).setdefault(temperature, _cut(sample.text, _LONGEST_TEXT))
    return found


def _end(prompt: str) -> str:
    return prompt if len(prompt) <= _LONGEST_TEXT else f"…{prompt[-_LONGEST_TEXT:]}"
