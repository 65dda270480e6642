"""Trained models from their artifacts."""

from typing import TypeVar

import safetensors.torch
from torch import Tensor

from calm_core.config import AutoencoderConfig, CalmConfig, TrainingConfig, TransformerConfig, parse_section
from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.errors import ArtifactError, ConfigError
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.transformer import Transformer
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, ModelFacts, TransformerFacts

WEIGHTS_NAME, TOKENIZER_NAME, CURVES_NAME = "weights.safetensors", "tokenizer.json", "curves.jsonl"

ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def load_autoencoder(artifact: Artifact[AutoencoderFacts]) -> Autoencoder:
    """The model of an `autoencoder` artifact, on CPU, in evaluation mode."""
    model = make_autoencoder(_config(artifact, AutoencoderConfig).model, artifact.facts.vocab_size)
    model.load_state_dict(load_weights(artifact))
    return model.eval()


def new_calm(artifact: Artifact[CalmFacts]) -> Calm:
    """A model of a `calm` artifact's shape with new weights, from torch's seed."""
    facts, config = artifact.facts, _config(artifact, CalmConfig)
    return Calm(config.model, facts.vocab_size, facts.chunk_size, facts.latent_size).eval()


def load_calm(artifact: Artifact[CalmFacts], autoencoder: Artifact[AutoencoderFacts]) -> Calm:
    """The model of a `calm` artifact, on CPU, in evaluation mode.

    Raises:
        ArtifactError: It was trained on another autoencoder.
    """
    require_own_autoencoder(artifact, autoencoder)
    model = new_calm(artifact)
    model.load_state_dict(load_weights(artifact))
    return model


def new_transformer(artifact: Artifact[TransformerFacts]) -> Transformer:
    """A model of a `transformer` artifact's shape with new weights, from torch's seed."""
    return Transformer(_config(artifact, TransformerConfig).model, artifact.facts.vocab_size).eval()


def load_transformer(artifact: Artifact[TransformerFacts]) -> Transformer:
    """The model of a `transformer` artifact, on CPU, in evaluation mode."""
    model = new_transformer(artifact)
    model.load_state_dict(load_weights(artifact))
    return model


def load_weights(artifact: Artifact[ModelFacts]) -> dict[str, Tensor]:
    """The weights of a model's artifact, by parameter name."""
    return dict(safetensors.torch.load(artifact.read(WEIGHTS_NAME)))


def load_tokenizer(artifact: Artifact[ModelFacts]) -> Tokenizer:
    """The tokenizer inside a model's artifact."""
    return Tokenizer.from_bytes(artifact.read(TOKENIZER_NAME), *_special(artifact.facts))


def _special(facts: ModelFacts) -> tuple[int, int, int | None]:
    return facts.pad_id, facts.eos_id, facts.bos_id


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
    autoencoder = Artifact(uri or calm.facts.autoencoder_uri, AutoencoderFacts)
    require_own_autoencoder(calm, autoencoder)
    return autoencoder


def require_own_autoencoder(calm: Artifact[CalmFacts], autoencoder: Artifact[AutoencoderFacts]) -> None:
    """Refuse an autoencoder that a CALM model was not trained on.

    Raises:
        ArtifactError: It is another one.
    """
    if calm.manifest.parents.get("autoencoder") != autoencoder.digest:
        raise ArtifactError(f"{calm.uri}: was trained on another autoencoder than {autoencoder.uri}")


def _config(artifact: Artifact[ModelFacts], config_type: type[ConfigT]) -> ConfigT:
    settings = {key: value for key, value in artifact.manifest.config.items() if key != "seed"}
    try:
        return parse_section(config_type, settings)
    except ConfigError as error:
        raise ArtifactError(f"{artifact.uri}: its settings are not understood ({error}); train it again") from None
