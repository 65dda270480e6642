"""Settings of language models: CALM, and the token-level baseline."""

from typing import Self

from pydantic import Field, model_validator

from calm_core.config.base import Layers, Section, Small, Steps, Uri, Width
from calm_core.config.decoder_losses import AnyDecoderLossConfig
from calm_core.config.distillation import DistillationConfig
from calm_core.config.heads import AnyHeadConfig, EnergyHeadConfig
from calm_core.config.training import Execution, TrainingConfig


class BackboneConfig(Section):
    """The shape of a Llama-style Transformer; CALM and the token-level baseline share it."""

    hidden_size: Width = 1024
    intermediate_size: Width = 2752
    num_hidden_layers: Layers = 16
    num_attention_heads: Width = 16
    rope_theta: float = Field(500_000.0, ge=1, le=1e12)
    rms_norm_eps: Small = 1e-6

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

    head: AnyHeadConfig = Field(EnergyHeadConfig(), description="generative head over the latent")


class TransformerModelConfig(BackboneConfig):
    """The token-level baseline's shape; its output projection is not tied to the embedding."""

    hidden_size: Width = 768
    intermediate_size: Width = 2048
    num_hidden_layers: Layers = 12


class LanguageModelTrainingConfig(TrainingConfig):
    """How a model with a Transformer backbone is trained."""

    steps: Steps = Field(250_000, description="optimiser steps")
    activation_checkpointing: Execution[bool] = Field(
        False, description="compute each layer's activations again in the backward pass, to save memory"
    )
    compile: Execution[bool] = Field(
        False, description="torch.compile each layer; needs Triton on a GPU, a C++ compiler on CPU"
    )


class CalmConfig(LanguageModelTrainingConfig, kind="calm"):
    """Model and training of the CALM language model."""

    head_learning_rate: float | None = Field(
        None, ge=1e-12, le=10, description="of the generative head; unset: learning_rate"
    )
    decoder_loss: AnyDecoderLossConfig = Field(
        None, description="a loss of decoded samples beside the head's: cross_entropy or brier, with its settings"
    )
    teacher: Execution[Uri] = Field(  # what lies there tells trainings apart, by its digest: a parent
        "",
        description="a trained model that this one learns from: a CALM model on the same autoencoder, or a Transformer "
        "with the same tokenizer. Unset: it learns from the text",
    )
    distillation: DistillationConfig = DistillationConfig()
    model: CalmModelConfig = CalmModelConfig()

    @model_validator(mode="after")
    def _a_teacher_has_its_own_loss(self) -> Self:
        if self.teacher and self.decoder_loss is not None:
            raise ValueError("decoder_loss is of a training without a teacher; unset it, or see distillation.loss")
        return self

    @model_validator(mode="after")
    def _a_loss_of_samples_reaches_the_head(self) -> Self:
        if self.decoder_loss is not None and not self.model.head.differentiable:
            raise ValueError(
                f"decoder_loss needs a head whose samples pass a gradient on, which {self.model.head.kind} is not; "
                "set calm.model.head=residual or energy, or leave it out"
            )
        return self


class TransformerConfig(LanguageModelTrainingConfig, kind="transformer"):
    """Model and training of the token-level Transformer baseline."""

    model: TransformerModelConfig = TransformerModelConfig()
