"""The autoencoder that a config names."""

from calm_core.config import AUTOENCODERS, AutoencoderModelConfig
from calm_core.models.autoencoders.base import Autoencoder


def make_autoencoder(config: AutoencoderModelConfig, vocab_size: int) -> Autoencoder:
    """The autoencoder that the config names, with new weights."""
    autoencoder: Autoencoder = AUTOENCODERS.class_of(config.kind)(config, vocab_size)
    return autoencoder
