"""The model card: what a registered version is, how good, of what, and what for; Markdown, its description in MLflow.

Strings that come from outside (names of files, of models, of reasons) are shown as code, where nothing in them acts.
"""

import shlex

import jinja2

from calm_core.shown import shortened
from calm_core.store.artifact import Artifact
from calm_core.store.facts import (
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    MixtureFacts,
    ModelFacts,
    TrainingCost,
)
from calm_core.weights.registered import DATA_FOLDER

LONGEST = 5_000
"""Characters of a description that MLflow's store takes."""

_MOST = 3  # of sources, reasons and models that are named
_LONGEST_NAME = 72


def model_card(
    model_name: str,
    report: str,
    evaluation: Artifact[EvaluationFacts],
    calm: Artifact[CalmFacts],
    autoencoder: Artifact[AutoencoderFacts],
    dataset: Artifact[Facts] | None = None,
) -> str:
    """The card of a version, as Markdown of at most `LONGEST` characters.

    Args:
        model_name: Of the registered model.
        report: Where the report of the evaluation is, as MLflow finds it; shown as it is.
        evaluation: Its scores.
        calm, autoencoder: The weights.
        dataset: The dataset or mixture that it was evaluated on, and trained; unset, the card says nothing of it.
    """
    facts, parents = evaluation.facts, evaluation.manifest.parents
    data = dataset.facts if dataset else None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("calm_core.registry"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _as_code, "number": "{:,}".format, "percent": _percent, "time": _time}
    return environment.get_template("card.md").render(
        name=model_name,
        uri=f"models:/{model_name}/NUMBER",
        evaluation=facts,
        scores=facts.shown(),
        unigram=facts.references.unigram.shown(),
        untrained=facts.references.untrained.shown(),
        confidence=evaluation.manifest.config.get("confidence"),
        calm=calm.facts,
        autoencoder=autoencoder.facts,
        data=data if isinstance(data, DatasetFacts) else None,
        mixture=data if isinstance(data, MixtureFacts) else None,
        most=_MOST,
        costs=facts.costs or {artifact.manifest.kind: _known_cost(artifact.facts) for artifact in (autoencoder, calm)},
        digests={kind: parents[kind] for kind in ("dataset", "autoencoder", "calm")}
        | {"evaluation": evaluation.digest},
        code=calm.manifest.code_version,
        seed=calm.manifest.config.get("seed"),
        folder=DATA_FOLDER,
        report=report,
        quote=shlex.quote,
    )


def _known_cost(model: ModelFacts) -> TrainingCost:
    """What a model itself says of its training."""
    return TrainingCost(tokens=model.trained_tokens, seconds=model.seconds)


def _as_code(value: object) -> str:
    """Anything as a code span, in which neither Markdown nor HTML is read; what would end it becomes an apostrophe."""
    text = shortened(str(value), _LONGEST_NAME).replace("`", "'")
    return f"`{text or ' '}`"


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 3600:,.2f} h"
