"""Inputs of commands, looked at in their manifests before anything is imported that takes seconds."""

from typing import TypeVar, cast

from calm_core.errors import ArtifactError, ConfigError
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact
from calm_core.store.facts import CalmFacts, Facts, ModelFacts, TransformerFacts
from calm_core.weights.lineage import autoencoder_of

FactsT = TypeVar("FactsT", bound=Facts)

_PUBLIC_CONFIG = "config.json"  # of a folder in Hugging Face's format


def require(uri: str, *kinds: type[FactsT]) -> Artifact[FactsT]:
    """The artifact at a place, if it is of one of some kinds.

    Raises:
        ArtifactError: It is missing, damaged or something else.
    """
    if not storage.exists(storage.join(uri, MANIFEST_NAME)) and storage.exists(storage.join(uri, _PUBLIC_CONFIG)):
        raise ArtifactError(f"{uri}: is a checkpoint of another library; `calm import` makes artifacts of public ones")
    return Artifact(uri, *kinds)


def require_language_model(uri: str, autoencoder_uri: str) -> Artifact[ModelFacts]:
    """The language model at a place, whose autoencoder is where it is said to be.

    Raises:
        ConfigError: An autoencoder is named for a model that has none, or none is for one that needs it.
        ArtifactError: One of them is missing, damaged or something else.
    """
    model: Artifact[ModelFacts] = require(uri, CalmFacts, TransformerFacts)
    if isinstance(model.facts, CalmFacts):
        autoencoder_of(cast(Artifact[CalmFacts], model), autoencoder_uri)
    elif autoencoder_uri:
        raise ConfigError(f"autoencoder_uri: {uri} is a Transformer, which has no autoencoder; leave it out")
    return model
