"""What is shown of one training."""

from calm_core.evaluation.report import render_training
from calm_core.store.artifact import Artifact
from calm_core.store.facts import ModelFacts
from calm_core.weights.curves import Curve, curve_of

_HEADLINES = {"autoencoder": "accuracy"}
"""The metric that tells most, of kinds where it is not the first one of the validation."""


def training_page(model: Artifact[ModelFacts]) -> str:
    """A page with the learning curves of a model."""
    return render_training(f"Training of {model.facts.kind}", model.facts, curves_of(model))


def numbers(model: Artifact[ModelFacts]) -> dict[str, float]:
    """How good a model is on held-out text, how large, and how quickly it was trained."""
    facts = model.facts
    told = {"parameters": facts.parameters, "trained_tokens": facts.trained_tokens or 0}
    return told | {f"validation_{name}": value for name, value in facts.validation.items()} | model.manifest.timings


def curves_of(model: Artifact[ModelFacts]) -> dict[tuple[str, str], Curve]:
    """A model's learning curve, by its picture's title and the metric's name; nothing of one that has none."""
    curve, kind = curve_of(model), model.facts.kind
    names = [_HEADLINES.get(kind, ""), *model.facts.validation]
    named = [name for name in names if any(name in point for point in curve)]
    return {(f"{kind}: {name.replace('_', ' ')}", name): curve for name in named[:1]}
