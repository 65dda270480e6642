"""Inputs of commands, looked at in their manifests before anything is imported that takes seconds."""

from typing import TypeVar, cast

from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, Facts, ModelFacts, TransformerFacts
from calm_core.weights.lineage import autoencoder_of

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


def require_language_model(uri: str, autoencoder_uri: str) -> Artifact[ModelFacts]:
    """The language model at a place, whose autoencoder is where it is said to be.

    Raises:
        ConfigError: An autoencoder is named for a model that has none, or none is for one that needs it.
        ArtifactError: One of them is missing, damaged or something else.
    """
    model: Artifact[ModelFacts] = require("MODEL", uri, CalmFacts, TransformerFacts)
    if autoencoder_uri:
        require("--autoencoder", autoencoder_uri, AutoencoderFacts)
    if isinstance(model.facts, CalmFacts):
        autoencoder_of(cast(Artifact[CalmFacts], model), autoencoder_uri)
    elif autoencoder_uri:
        raise ConfigError(f"autoencoder_uri: {uri} is a Transformer, which has no autoencoder; leave it out")
    return model
