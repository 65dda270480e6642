"""Trained models from their artifacts."""

import safetensors.torch

from calm_core.config import AutoencoderConfig, CalmConfig, TransformerConfig
from calm_core.errors import ArtifactError
from calm_core.models.autoencoders.mlp import Autoencoder
from calm_core.models.calm import Calm
from calm_core.models.transformer import Transformer
from calm_core.store.artifact import Artifact

WEIGHTS_NAME = "weights.safetensors"


def load_autoencoder(artifact: Artifact) -> Autoencoder:
    """The model of an `autoencoder` artifact, on CPU, in evaluation mode."""
    results = artifact.manifest.results
    config = AutoencoderConfig.model_validate(_without_seed(artifact))
    model = Autoencoder(config.model, results["vocab_size"])
    model.load_state_dict(safetensors.torch.load(artifact.read(WEIGHTS_NAME)))
    return model.eval()


def new_calm(artifact: Artifact) -> Calm:
    """A model of a `calm` artifact's shape with new weights, from torch's seed."""
    results = artifact.manifest.results
    config = CalmConfig.model_validate(_without_seed(artifact))
    return Calm(config.model, results["vocab_size"], results["chunk_size"], results["latent_size"]).eval()


def load_calm(artifact: Artifact, autoencoder: Artifact) -> Calm:
    """The model of a `calm` artifact, on CPU, in evaluation mode.

    Raises:
        ArtifactError: It was trained on another autoencoder.
    """
    if artifact.manifest.parents["autoencoder"] != autoencoder.digest:
        raise ArtifactError(f"{artifact.uri}: was trained on another autoencoder than {autoencoder.uri}")
    model = new_calm(artifact)
    model.load_state_dict(safetensors.torch.load(artifact.read(WEIGHTS_NAME)))
    return model


def new_transformer(artifact: Artifact) -> Transformer:
    """A model of a `transformer` artifact's shape with new weights, from torch's seed."""
    config = TransformerConfig.model_validate(_without_seed(artifact))
    return Transformer(config.model, artifact.manifest.results["vocab_size"]).eval()


def load_transformer(artifact: Artifact) -> Transformer:
    """The model of a `transformer` artifact, on CPU, in evaluation mode."""
    model = new_transformer(artifact)
    model.load_state_dict(safetensors.torch.load(artifact.read(WEIGHTS_NAME)))
    return model


def _without_seed(artifact: Artifact) -> dict[str, object]:
    return {key: value for key, value in artifact.manifest.config.items() if key != "seed"}
