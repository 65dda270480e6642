"""Which autoencoder a CALM model belongs to, by manifests alone: nothing here imports torch."""

from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts


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
