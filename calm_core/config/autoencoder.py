"""Settings of autoencoders."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from calm_core.config.base import MOST_LAYERS, Fraction, Small, Steps, Width
from calm_core.config.kinds import Kind, Kinds
from calm_core.config.training import TrainingConfig


class AutoencoderModelConfig(Kind):
    """What every autoencoder has: the shape that others rely on, and its loss (CALM paper, arXiv 2510.27688)."""

    chunk_size: int = Field(4, ge=1, le=1024, description="K, tokens in a chunk")
    latent_size: Width = Field(128, description="l, numbers in a chunk's vector")
    kl_weight: float = Field(1e-3, ge=0, le=1e6)
    kl_clip: float = Field(
        0.5, ge=0, le=1e6, description="smallest KL per latent dimension, in nats; stops dimensions from collapsing"
    )
    latent_dropout: Fraction = Field(0.15, description="dropout on the latent while training")
    token_dropout: Fraction = Field(0.15, description="input tokens masked while training")


class ResidualAutoencoderConfig(AutoencoderModelConfig):
    """Residual blocks within each chunk, no attention (CALM paper, section on the autoencoder)."""

    hidden_size: Width = 512
    intermediate_size: Width = 1280
    num_encoder_layers: int = Field(
        2, ge=0, le=MOST_LAYERS, description="residual blocks; the first half (rounded up) before squeezing"
    )
    num_decoder_layers: int = Field(
        2, ge=0, le=MOST_LAYERS, description="residual blocks; the first half (rounded down) before expansion"
    )
    rms_norm_eps: Small = 1e-6


class MlpAutoencoderConfig(ResidualAutoencoderConfig):
    """The paper's: a chunk is decoded from its vector alone."""

    kind: Literal["mlp"] = "mlp"


class ReadingAutoencoderConfig(ResidualAutoencoderConfig):
    """The decoder reads, beside the vector, the tokens before each that it decodes."""

    kind: Literal["reading"] = "reading"
    context_size: int = Field(16, ge=1, le=1024, description="tokens before each that the decoder reads")
    reading_noise: float = Field(
        1.5,
        gt=0,
        le=100,
        description="most noise on the vectors from which the decoder learns to read, of the vectors' root mean square",
    )


AUTOENCODERS = Kinds(
    "autoencoder.model",
    AutoencoderModelConfig,
    {
        "mlp": "calm_core.models.autoencoders.mlp:MlpAutoencoder",
        "reading": "calm_core.models.autoencoders.reading:ReadingAutoencoder",
    },
)
AnyAutoencoderConfig = Annotated[SerializeAsAny[AutoencoderModelConfig], BeforeValidator(AUTOENCODERS.parse)]


class AutoencoderConfig(TrainingConfig, kind="autoencoder"):
    """Model and training of the autoencoder."""

    steps: Steps = Field(30_000, description="optimiser steps")
    model: AnyAutoencoderConfig = MlpAutoencoderConfig()
