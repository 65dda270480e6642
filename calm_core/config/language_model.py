"""Settings of language models: CALM, and the token-level baseline."""

from typing import Literal, Self

from pydantic import Field, model_validator

from calm_core.config.base import Section
from calm_core.config.training import TrainingConfig


class BackboneConfig(Section):
    """The shape of a Llama-style Transformer; CALM and the token-level baseline share it."""

    hidden_size: int = Field(1024, ge=2)
    intermediate_size: int = Field(2752, ge=1)
    num_hidden_layers: int = Field(16, ge=1)
    num_attention_heads: int = Field(16, ge=1)
    rope_theta: float = Field(500_000.0, gt=0)
    rms_norm_eps: float = Field(1e-6, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be "
                f"num_attention_heads ({self.num_attention_heads}) times an even number"
            )
        return self


class CalmModelConfig(BackboneConfig):
    """The language model's shape and loss; chunk and latent size come from the autoencoder."""

    head: Literal["energy", "diffusion", "flow"] = Field("energy", description="generative head over the latent")
    num_head_layers: int = Field(4, ge=1, description="blocks of the head; the paper uses a quarter of the layers")
    noise_size: int = Field(64, ge=1, description="uniform noise that the energy head turns into a sample")
    model_samples: int = Field(
        8, ge=2, description="N, samples of the head per position in the energy loss; noise draws in the other losses"
    )
    target_samples: int = Field(100, ge=1, description="M, samples of the autoencoder's posterior in the energy loss")
    energy_alpha: float = Field(1.0, gt=0, lt=2, description="exponent of the energy score, strictly proper in (0, 2)")
    diffusion_steps: int = Field(1000, ge=2, description="noise levels that the diffusion head is trained on")
    sampling_steps: int = Field(
        100, ge=1, description="network evaluations of one sample of the diffusion or flow head; flow does with 8"
    )

    @model_validator(mode="after")
    def _levels_for_each_step(self) -> Self:
        if self.head == "diffusion" and self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps ({self.sampling_steps}) must not exceed diffusion_steps ({self.diffusion_steps})"
            )
        return self


class TransformerModelConfig(BackboneConfig):
    """The token-level baseline's shape; its output projection is not tied to the embedding."""

    hidden_size: int = Field(768, ge=2)
    intermediate_size: int = Field(2048, ge=1)
    num_hidden_layers: int = Field(12, ge=1)


class LanguageModelTrainingConfig(TrainingConfig):
    """How a model with a Transformer backbone is trained."""

    steps: int = Field(250_000, ge=1, description="optimiser steps")
    activation_checkpointing: bool = Field(
        False, description="compute each layer's activations again in the backward pass, to save memory"
    )
    compile: bool = Field(False, description="torch.compile each layer; needs Triton on a GPU, a C++ compiler on CPU")


class CalmConfig(LanguageModelTrainingConfig):
    """Model and training of the CALM language model."""

    model: CalmModelConfig = CalmModelConfig()


class TransformerConfig(LanguageModelTrainingConfig):
    """Model and training of the token-level Transformer baseline."""

    model: TransformerModelConfig = TransformerModelConfig()
