"""Which autoencoder a CALM model belongs to, by manifests alone: nothing here imports torch."""

from typing import cast

from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts


def require_autoencoder(model: Artifact[ModelFacts], uri: str = "") -> None:
    """Refuse a CALM model whose autoencoder is not where it is said to be, and an autoencoder for another model.

    Args:
        model: Of any kind.
        uri: Where its autoencoder lies, as `autoencoder_of` takes it.

    Raises:
        ConfigError: One is named for a model that has none, or none is for one that needs it.
        ArtifactError: It is missing, or another one.
    """
    if isinstance(model.facts, CalmFacts):
        autoencoder_of(cast(Artifact[CalmFacts], model), uri)
    elif uri:
        raise ConfigError(
            f"{model.uri}: is of kind {model.facts.kind}, which has no autoencoder; leave out autoencoder_uri"
        )


def autoencoder_of(calm: Artifact[CalmFacts], uri: str = "") -> Artifact[AutoencoderFacts]:
    """The autoencoder that a CALM model was trained on.

    Args:
        calm: The model.
        uri: Where the autoencoder lies; unset, where it lay when the model was trained.

    Raises:
        ConfigError: It is not known where.
        ArtifactError: It is missing, or another one.
    """
    if not (uri or calm.facts.autoencoder_uri):
        raise ConfigError(f"{calm.uri}: a CALM model needs its autoencoder; name it with autoencoder_uri")
    try:
        autoencoder = Artifact(uri or calm.facts.autoencoder_uri, AutoencoderFacts)
    except ArtifactError as error:
        if uri:
            raise
        raise ArtifactError(
            f"{calm.uri}: its autoencoder is not where it was in training; name it with autoencoder_uri ({error})"
        ) from None
    require_own_autoencoder(calm, autoencoder)
    return autoencoder


def require_own_autoencoder(calm: Artifact[CalmFacts], autoencoder: Artifact[AutoencoderFacts]) -> None:
    """Refuse an autoencoder that a CALM model was not trained on.

    Raises:
        ArtifactError: It is another one.
    """
    if calm.manifest.parents.get("autoencoder") != autoencoder.digest:
        raise ArtifactError(
            f"{calm.uri}: was trained on another autoencoder than {autoencoder.uri}; name its own (digest "
            f"{calm.manifest.parents.get('autoencoder', 'unknown')[:16]}...) with autoencoder_uri"
        )
