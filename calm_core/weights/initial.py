"""The model whose weights a training starts from: an artifact, or inside a registered version. Needs no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from calm_core.config import TrainingConfig
from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, Facts, ModelFacts
from calm_core.telemetry.mlflow_run import REGISTERED
from calm_core.weights.registered import registered_artifacts

INITIAL_WEIGHTS = "initial_weights"
"""Name of the setting, and of the parent."""


@contextmanager
def initial_model(config: TrainingConfig, *, files: bool = True) -> Iterator[Artifact[ModelFacts]]:
    """The model that a training starts from, while the block lasts.

    Args:
        config: Of the training.
        files: Whether those of a registered model are brought here, or the manifest alone.

    Raises:
        ConfigError: It is missing, or of another kind.
        CalmError: It is damaged, or MLflow does not answer.
    """
    uri, setting = config.initial_weights, f"{config.kind}.{INITIAL_WEIGHTS}"
    kind = cast(type[ModelFacts], Facts.of_kind[config.kind])
    if uri.startswith(REGISTERED):
        if kind not in (AutoencoderFacts, CalmFacts):
            raise ConfigError(f"{setting}: {uri} holds a CALM model and its autoencoder; name a {kind.kind} artifact")
        with registered_artifacts(uri, files=files) as (autoencoder, calm):
            yield autoencoder if kind is AutoencoderFacts else calm
        return
    try:
        artifact = Artifact(uri, kind)
    except ArtifactError as error:
        raise ConfigError(f"{setting}: {error}") from None
    yield artifact


def initial_digest(config: TrainingConfig) -> str:
    """The digest of the model that a training starts from; empty where it starts from random weights.

    Raises:
        CalmError: As of `initial_model`.
    """
    if not config.initial_weights:
        return ""
    with initial_model(config, files=False) as initial:
        return initial.digest
