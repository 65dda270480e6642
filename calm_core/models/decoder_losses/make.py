"""The loss through the decoder that a config names."""

from calm_core.config import DECODER_LOSSES, DecoderLossConfig
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.decoder_losses.base import DecoderLoss


def make_decoder_loss(config: DecoderLossConfig, autoencoder: Autoencoder) -> DecoderLoss:
    """The loss that the config names, through this decoder."""
    loss: DecoderLoss = DECODER_LOSSES.class_of(config.kind)(config, autoencoder)
    return loss
