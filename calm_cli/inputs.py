"""Inputs of commands, looked at in their manifests before anything is imported that takes seconds."""

from typing import TypeVar

from calm_core.errors import ArtifactError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, Facts, ModelFacts
from calm_core.weights.lineage import require_autoencoder

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
