"""What training and using a configuration costs: parameters, floating-point operations, memory.

Parameters and the weights of matrix products are read off the models themselves, built without storage. Operations
count matrix products and attention only, as in the CALM paper (arXiv 2510.27688): a forward pass takes 2 x weights for
each position, plus 4 x positions x hidden size x layers for attention over the whole context, not halved for
causality; a backward pass takes twice that.
"""

from dataclasses import dataclass

import torch
from torch import nn

from calm_core.config import BackboneConfig, CalmModelConfig, Config, TrainingConfig, TransformerModelConfig
from calm_core.models.autoencoders.mlp import Autoencoder
from calm_core.models.calm import Calm
from calm_core.models.transformer import Transformer

ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Estimate:
    """One model of a configuration.

    Attributes:
        parameters: Of each part, all trained together.
        training_tokens: Steps x sequences x tokens.
        training_flops_per_token, training_flops: Forward and backward.
        inference_flops_per_token: Of one generated token with the whole context.
        state_bytes: Parameters, gradients and optimiser on one GPU, by ZeRO stage.
        activation_bytes: What one micro-batch keeps for the backward pass, roughly.
    """

    parameters: dict[str, int]
    training_tokens: int
    training_flops_per_token: float
    inference_flops_per_token: float
    state_bytes: dict[int, float]
    activation_bytes: float

    @property
    def training_flops(self) -> float:
        return self.training_flops_per_token * self.training_tokens


def estimate(config: Config, gpus: int) -> dict[str, Estimate]:
    """Estimates of the autoencoder, CALM and the Transformer baseline, by these names.

    Args:
        config: The resolved settings.
        gpus: Ranks that share a training run, one GPU each; bf16 is assumed unless a section says fp32.
    """
    with torch.device("meta"):
        shape, vocab_size = config.autoencoder.model, config.tokenizer.vocab_size
        autoencoder = Autoencoder(shape, vocab_size)
        calm = Calm(config.calm.model, vocab_size, shape.chunk_size, shape.latent_size)
        transformer = Transformer(config.transformer.model, vocab_size)
    return {
        "autoencoder": _autoencoder(config, autoencoder, gpus),
        "CALM": _calm(config, calm, autoencoder, gpus),
        "Transformer": _transformer(config, transformer, gpus),
    }


def parameters(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in module.parameters())


def products(*modules: nn.Module) -> int:
    """Weights of the linear layers, each of which is one multiplication and one addition for a position."""
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(layer.weight.numel() for layer in layers)


def attention_flops(config: BackboneConfig, positions: int) -> int:
    """Scores and weighted sums of one position that sees all positions: 4 T d L."""
    return 4 * positions * config.hidden_size * config.num_hidden_layers


def _encoder_flops(autoencoder: Autoencoder) -> int:
    """Forward pass over one chunk."""
    encoder, chunk = autoencoder.encoder, autoencoder.config.chunk_size
    before, after = encoder.encoder_layers[: encoder.layers_before], encoder.encoder_layers[encoder.layers_before :]
    return 2 * (chunk * products(*before) + products(encoder.squeeze_layer, *after, encoder.hidden_to_latent))


def _decoder_flops(autoencoder: Autoencoder) -> int:
    """Forward pass over one latent, with the projection of each token to the vocabulary."""
    decoder, chunk = autoencoder.decoder, autoencoder.config.chunk_size
    before, after = decoder.decoder_layers[: decoder.layers_before], decoder.decoder_layers[decoder.layers_before :]
    vocabulary = autoencoder.encoder.embed_tokens.weight.numel()
    once = products(decoder.latent_to_hidden, *before, decoder.expand_layer)
    return 2 * (once + chunk * (products(*after) + vocabulary))


def _autoencoder(config: Config, autoencoder: Autoencoder, gpus: int) -> Estimate:
    shape, training = config.autoencoder.model, config.autoencoder
    forward = (_encoder_flops(autoencoder) + _decoder_flops(autoencoder)) / shape.chunk_size
    blocks = (shape.num_encoder_layers + shape.num_decoder_layers) / 2 * (1 + 1 / shape.chunk_size)
    kept = blocks * (3 * shape.hidden_size + 4 * shape.intermediate_size)
    parts = {
        "embedding (tied)": parameters(autoencoder.encoder.embed_tokens),
        "encoder": parameters(autoencoder.encoder) - parameters(autoencoder.encoder.embed_tokens),
        "decoder": parameters(autoencoder.decoder),
    }
    tokens = training.micro_batch_size * config.data.sequence_length
    return Estimate(
        parameters=parts,
        training_tokens=_training_tokens(config, training),
        training_flops_per_token=3 * forward,
        inference_flops_per_token=forward,
        state_bytes=state_bytes(sum(parts.values()), training, gpus),
        activation_bytes=_bytes(training) * kept * tokens,
    )


def _calm(config: Config, calm: Calm, autoencoder: Autoencoder, gpus: int) -> Estimate:
    """The head runs once for each of N model samples in training, and once for each evaluation of a sample in use.

    The frozen encoder runs forward once; the decoder runs in inference only.
    """
    model, training, chunk = config.calm.model, config.calm, calm.chunk_size
    positions = config.data.sequence_length // chunk
    backbone = 2 * products(calm.transformer, calm.embed_proj) + attention_flops(model, positions)
    head = 2 * products(calm.mlp_generator)
    evaluations = 1 if model.head == "energy" else model.sampling_steps
    head_width = 14 * model.hidden_size * model.num_head_layers
    kept = _backbone_activations(model, training.activation_checkpointing) + model.model_samples * head_width
    parts = {
        "embedding": parameters(calm.transformer.embed_tokens),
        "input projection": parameters(calm.embed_proj),
        "backbone": parameters(calm.transformer) - parameters(calm.transformer.embed_tokens),
        f"{model.head} head": parameters(calm.mlp_generator),
    }
    frozen = _bytes(training) * parameters(autoencoder)
    return Estimate(
        parameters=parts,
        training_tokens=_training_tokens(config, training),
        training_flops_per_token=(3 * (backbone + model.model_samples * head) + _encoder_flops(autoencoder)) / chunk,
        inference_flops_per_token=(backbone + evaluations * head + _decoder_flops(autoencoder)) / chunk,
        state_bytes={stage: size + frozen for stage, size in state_bytes(sum(parts.values()), training, gpus).items()},
        activation_bytes=_bytes(training) * kept * training.micro_batch_size * positions,
    )


def _transformer(config: Config, transformer: Transformer, gpus: int) -> Estimate:
    model, training, positions = config.transformer.model, config.transformer, config.data.sequence_length
    forward = 2 * products(transformer) + attention_flops(model, positions)
    parts = {
        "embedding": parameters(transformer.transformer.embed_tokens),
        "backbone": parameters(transformer.transformer) - parameters(transformer.transformer.embed_tokens),
        "output projection": parameters(transformer.lm_head),
    }
    kept = _backbone_activations(model, training.activation_checkpointing)
    return Estimate(
        parameters=parts,
        training_tokens=_training_tokens(config, training),
        training_flops_per_token=3 * forward,
        inference_flops_per_token=forward,
        state_bytes=state_bytes(sum(parts.values()), training, gpus),
        activation_bytes=_bytes(training) * kept * training.micro_batch_size * positions,
    )


def state_bytes(number: int, training: TrainingConfig, gpus: int) -> dict[int, float]:
    """Parameters, gradients and Adam's state of one GPU, by ZeRO stage (Rajbhandari et al. 2020).

    bf16: 2 bytes a parameter, 2 a gradient, 12 for the fp32 copy and the two moments; fp32: 4, 4 and 8. Stage 1 shares
    the optimiser's part between the ranks, stage 2 the gradients too, stage 3 the parameters too.
    """
    parameter = gradient = _bytes(training)
    optimiser = 8 if training.precision == "fp32" else 12
    return {
        0: number * float(parameter + gradient + optimiser),
        1: number * (parameter + gradient + optimiser / gpus),
        2: number * (parameter + (gradient + optimiser) / gpus),
        3: number * (parameter + gradient + optimiser) / gpus,
    }


def _backbone_activations(config: CalmModelConfig | TransformerModelConfig, checkpointing: bool) -> float:
    """Numbers kept for one position: inputs of norms, products and gates; attention scores are never kept."""
    layer = 11 * config.hidden_size + 4 * config.intermediate_size
    if checkpointing:
        return config.num_hidden_layers * config.hidden_size + layer
    return config.num_hidden_layers * layer


def _training_tokens(config: Config, training: TrainingConfig) -> int:
    return training.steps * training.global_batch_size * config.data.sequence_length


def _bytes(training: TrainingConfig) -> int:
    return 4 if training.precision == "fp32" else 2
