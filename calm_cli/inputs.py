"""Inputs of commands, looked at in their manifests before anything is imported that takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, Facts, ModelFacts, TransformerFacts
from calm_core.telemetry.mlflow_run import REGISTERED
from calm_core.weights.lineage import require_autoencoder
from pipelines.local.home import Home

FactsT = TypeVar("FactsT", bound=Facts)


def require(option: str, uri: str, *kinds: type[FactsT]) -> Artifact[FactsT]:
    """The artifact that an option or argument names, if it is of one of some kinds.

    Raises:
        ArtifactError: It is missing, damaged or something else; the line begins with the option.
    """
    try:
        return Artifact(uri, *kinds)
    except ArtifactError as error:
        raise ArtifactError(f"{option} {error}") from None


def require_model(uri: str, autoencoder_uri: str, *kinds: type[ModelFacts]) -> Artifact[ModelFacts]:
    """The model that MODEL names, whose autoencoder is where it is said to be.

    Raises:
        ConfigError: An autoencoder is named for a model that has none, or none is for one that needs it.
        ArtifactError: One of them is missing, damaged or something else.
    """
    model = require("MODEL", uri, *kinds)
    if autoencoder_uri:
        require("--autoencoder", autoencoder_uri, AutoencoderFacts)
    require_autoencoder(model, autoencoder_uri)
    return model


@contextmanager
def model_artifacts(uri: str, autoencoder_uri: str) -> Iterator[tuple[str, str]]:
    """Where a language model and its autoencoder lie; those of a registered one, while the block lasts.

    Raises:
        CalmError: As `require_model`; or there is no such registered model.
        ConfigError: An autoencoder is named for a registered model.
    """
    if not uri.startswith(REGISTERED):
        require_model(uri, autoencoder_uri, CalmFacts, TransformerFacts)
        yield uri, autoencoder_uri
        return
    if autoencoder_uri:
        raise ConfigError("autoencoder_uri: a registered model brings its autoencoder; leave it out")
    from calm_core.weights.registered import registered_artifacts
    from pipelines.local.tracking import read_tracking

    read_tracking(Home.find(make=False))
    with registered_artifacts(uri) as (autoencoder, calm):
        yield calm.uri, autoencoder.uri
