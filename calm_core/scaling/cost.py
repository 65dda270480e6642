"""What training and using a configuration costs: parameters, floating-point operations, memory.

All is read off the models themselves, built without storage: parameters are counted, and so are the operations of a
forward pass (matrix products, and attention over the whole context, not halved for causality), by running it on torch's
meta device. A backward pass takes twice that. It is the accounting of the CALM paper (arXiv 2510.27688).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from calm_core.config import AutoencoderConfig, BackboneConfig, CalmConfig, Config, TrainingConfig, TransformerConfig
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.backbone import Backbone
from calm_core.models.calm import Calm
from calm_core.models.layers import without_storage
from calm_core.models.transformer import Transformer

ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Cost:
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


def estimate(config: Config, gpus: int) -> dict[str, Cost]:
    """Costs of the autoencoder, CALM and the Transformer baseline, by these names.

    Args:
        config: The resolved settings.
        gpus: Ranks that share a training run, one GPU each; bf16 is assumed where a section says auto.
    """
    autoencoder, calm, transformer = _models(config, config.tokenizer.vocab_size)
    return {
        "autoencoder": _autoencoder(config, autoencoder, gpus),
        "CALM": _calm(config, calm, autoencoder, gpus),
        "Transformer": _transformer(config, transformer, gpus),
    }


def parameters_by_kind(config: Config, vocab_size: int) -> dict[str, int]:
    """Numbers that are trained of each model, by its section of the settings, in the order in which they are trained.

    Args:
        config: The resolved settings.
        vocab_size: Of the tokenizer, which may be another one than is trained.
    """
    autoencoder, calm, transformer = map(parameters, _models(config, vocab_size))
    return {"autoencoder": autoencoder, "calm": calm, "transformer": transformer}


def training_flops_per_token(
    config: TrainingConfig, autoencoder: AutoencoderConfig | None, vocab_size: int, sequence_length: int
) -> float:
    """Operations of training on one token, forward and backward: what `estimate` says of this model.

    Args:
        config: Of a model of any kind.
        autoencoder: Of the one that a CALM model is trained on; None for the other kinds.
        vocab_size: Of the tokenizer.
        sequence_length: In tokens.
    """
    match _model(config, autoencoder, vocab_size):
        case Autoencoder() as trained:
            return 3 * _autoencoder_forward(trained)
        case Calm() as calm, Autoencoder() as frozen:
            assert isinstance(config, CalmConfig)
            return _calm_training(config, calm, frozen, sequence_length // calm.chunk_size)
        case Transformer() as transformer:
            return 3 * _transformer_forward(transformer, sequence_length)


def inference_flops_per_token(
    config: TrainingConfig, autoencoder: AutoencoderConfig | None, vocab_size: int, context_length: int
) -> float:
    """Operations of one generated token: what `estimate` says of this model. Of an autoencoder, to and fro.

    Args:
        config, autoencoder, vocab_size: As of `training_flops_per_token`.
        context_length: Tokens of the context that it is generated in, its own among them.
    """
    match _model(config, autoencoder, vocab_size):
        case Autoencoder() as trained:
            return _autoencoder_forward(trained)
        case Calm() as calm, Autoencoder() as frozen:
            return _calm_inference(calm, frozen, context_length // calm.chunk_size)
        case Transformer() as transformer:
            return _transformer_forward(transformer, context_length)


def _model(
    config: TrainingConfig, autoencoder: AutoencoderConfig | None, vocab_size: int
) -> Autoencoder | tuple[Calm, Autoencoder] | Transformer:
    """The model of some settings, without storage; a CALM model with the autoencoder that it is trained on."""
    with without_storage():
        match config:
            case AutoencoderConfig():
                return make_autoencoder(config.model, vocab_size)
            case CalmConfig():
                assert autoencoder is not None
                shape = autoencoder.model
                calm = Calm(config.model, vocab_size, shape.chunk_size, shape.latent_size)
                return calm, make_autoencoder(shape, vocab_size)
            case TransformerConfig():
                return Transformer(config.model, vocab_size)
    raise TypeError(f"{type(config).__name__} is of no model")


def _models(config: Config, vocab_size: int) -> tuple[Autoencoder, Calm, Transformer]:
    """All models, without storage."""
    shape = config.autoencoder.model
    with without_storage():
        return (
            make_autoencoder(shape, vocab_size),
            Calm(config.calm.model, vocab_size, shape.chunk_size, shape.latent_size),
            Transformer(config.transformer.model, vocab_size),
        )


def parameters(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in module.parameters())


def forward_flops(compute: Callable[..., Any], *shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> int:
    """Operations of a computation on inputs of these shapes; nothing is computed.

    Args:
        compute: A model on the meta device, or a part of it.
        shapes: Of its inputs.
        dtype: Of the inputs; unset, torch's default.
    """
    inputs = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        compute(*inputs)
    return int(counter.get_total_flops())


def saved_numbers(module: nn.Module, compute: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    """Numbers that a computation keeps for its backward pass, beside the module's parameters; inputs are floats."""
    known = {p.untyped_storage()._cdata for p in module.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)  # views of one tensor are kept once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute(*(torch.empty(shape, device="meta") for shape in shapes))
    return sum(tensor.numel() for storage, tensor in saved.items() if storage not in known)


def _encoder_flops(autoencoder: Autoencoder) -> int:
    """Forward pass over one chunk."""
    return forward_flops(autoencoder.encode, (1, autoencoder.config.chunk_size), dtype=torch.int64)


def _decoder_flops(autoencoder: Autoencoder) -> int:
    """Forward pass over one latent, with the projection of each token to the vocabulary."""
    return forward_flops(partial(_logits, autoencoder), (1, autoencoder.config.latent_size))


def _logits(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """Of chunks whose text is known, [R, K, V]; how many operations it takes does not depend on what they say."""
    before = torch.zeros(len(latents), autoencoder.reads, dtype=torch.int64, device=latents.device)
    return autoencoder.logits(latents, before, before.new_zeros(len(latents), autoencoder.config.chunk_size))


def _autoencoder_forward(autoencoder: Autoencoder) -> float:
    """Forward pass over one token."""
    return (_encoder_flops(autoencoder) + _decoder_flops(autoencoder)) / autoencoder.config.chunk_size


def _calm_training(config: CalmConfig, calm: Calm, autoencoder: Autoencoder, positions: int) -> float:
    """Training on one token of a sequence of so many chunks; of a student, what it computes itself.

    The head runs as often as it says, and the frozen encoder forward only; the decoder runs in a loss of decoded
    samples and in inference. A student's head runs for each lesson, and for its own loss if that counts; through the
    frozen decoder a gradient passes to the latents alone, which takes as much as the forward pass.
    """
    lessons = config.distillation
    head, frozen = 0.0, float(_encoder_flops(autoencoder))
    if not config.teacher or lessons.own_loss_weight:
        head += calm.mlp_generator.training_passes * forward_flops(calm.mlp_generator.training_pass, *_one_draw(calm))
    if config.teacher:
        head += lessons.samples * forward_flops(calm.mlp_generator.sample, *_one_draw(calm))
        if lessons.loss == "cross_entropy":
            frozen += 2 * lessons.samples * _decoder_flops(autoencoder)
    frozen += _decoder_loss_flops(config, calm, autoencoder)
    return (3 * (_calm_backbone(calm, positions) + head) + frozen) / calm.chunk_size


def _decoder_loss_flops(config: CalmConfig, calm: Calm, autoencoder: Autoencoder) -> float:
    """Training on one chunk by the loss of decoded samples, a mean over all steps and positions.

    The backward pass through the frozen decoder needs no gradients of its weights: it takes once the forward pass.
    """
    if (loss := config.decoder_loss) is None:
        return 0.0
    samples = loss.positions * (loss.until or 1) * (loss.samples or calm.config.head.model_samples)
    head = forward_flops(calm.mlp_generator.sample, *_one_draw(calm))
    return samples * (3 * head + 2 * _decoder_flops(autoencoder))


def teacher_flops_per_token(
    student: CalmConfig,
    teacher: CalmConfig | TransformerConfig,
    autoencoder: AutoencoderConfig,
    vocab_size: int,
    sequence_length: int,
) -> float:
    """Operations of a teacher's forward passes for one token that its student is trained on.

    Args:
        student: How it is trained.
        teacher: Of the teacher's own training.
        autoencoder: That of the student.
        vocab_size: Of the tokenizer.
        sequence_length: In tokens.
    """
    match _model(teacher, autoencoder, vocab_size):
        case Calm() as calm, Autoencoder() as frozen:
            lessons, positions = student.distillation, sequence_length // calm.chunk_size
            one = forward_flops(calm.mlp_generator.sample, *_one_draw(calm))
            if lessons.loss == "cross_entropy":
                one += _decoder_flops(frozen)
            return (_calm_backbone(calm, positions) + lessons.samples * one) / calm.chunk_size
        case Transformer() as transformer:
            return _transformer_forward(transformer, sequence_length)
    raise TypeError(f"{type(teacher).__name__} is no teacher")


def _calm_inference(calm: Calm, autoencoder: Autoencoder, positions: int) -> float:
    """Generating one token in a context of so many chunks: the head runs once, the decoder for each token."""
    head = forward_flops(calm.mlp_generator.sample, *_one_draw(calm))
    return (_calm_backbone(calm, positions) + head + _decoder_flops(autoencoder)) / calm.chunk_size


def _calm_backbone(calm: Calm, positions: int) -> float:
    """Forward pass over one chunk of a sequence of so many, without the head."""
    embedded = forward_flops(calm.embed, (1, calm.chunk_size), dtype=torch.int64)
    return _backbone_flops(calm.transformer, positions) + embedded


def _one_draw(calm: Calm) -> tuple[tuple[int, ...], ...]:
    """Shapes of what the head takes for one sample: hidden state and noise."""
    return (1, calm.config.hidden_size), (1, 1, calm.mlp_generator.noise_size)


def _transformer_forward(transformer: Transformer, positions: int) -> float:
    """Forward pass over one token of a sequence of so many."""
    head = forward_flops(transformer.lm_head, (1, transformer.config.hidden_size))
    return _backbone_flops(transformer.transformer, positions) + head


def _autoencoder(config: Config, autoencoder: Autoencoder, gpus: int) -> Cost:
    training, chunk = config.autoencoder, autoencoder.config.chunk_size
    forward = _autoencoder_forward(autoencoder)
    embedding = autoencoder.embedding
    parts = {"embedding (tied)": embedding.numel()}
    for name, child in autoencoder.named_children():
        parts[name] = parameters(child) - sum(p.numel() for p in child.parameters() if p is embedding)
    kept = saved_numbers(
        autoencoder, lambda chunk: _logits(autoencoder, autoencoder.encode(chunk.long()).mean), (1, chunk)
    )
    tokens = training.micro_batch_size * config.data.sequence_length
    return Cost(
        parameters=parts,
        training_tokens=_training_tokens(config, training),
        training_flops_per_token=3 * forward,
        inference_flops_per_token=forward,
        state_bytes=state_bytes(sum(parts.values()), training, gpus),
        activation_bytes=_bytes(training) * kept / chunk * tokens,
    )


def _calm(config: Config, calm: Calm, autoencoder: Autoencoder, gpus: int) -> Cost:
    model, training, head = config.calm.model, config.calm, calm.mlp_generator
    positions = config.data.sequence_length // calm.chunk_size
    kept = _backbone_activations(model, training.activation_checkpointing)
    kept += head.training_passes * saved_numbers(head, head.training_pass, *_one_draw(calm))
    if (loss := training.decoder_loss) is not None:  # what the decoder keeps exists for a block of positions only
        samples = loss.positions * (loss.samples or model.head.model_samples)
        kept += samples * saved_numbers(head, head.sample, *_one_draw(calm))
    parts = {
        "embedding": parameters(calm.transformer.embed_tokens),
        "input projection": parameters(calm.embed_proj),
        "backbone": parameters(calm.transformer) - parameters(calm.transformer.embed_tokens),
        f"{model.head.kind} head": parameters(head),
    }
    frozen = _bytes(training) * parameters(autoencoder)
    return Cost(
        parameters=parts,
        training_tokens=_training_tokens(config, training),
        training_flops_per_token=_calm_training(training, calm, autoencoder, positions),
        inference_flops_per_token=_calm_inference(calm, autoencoder, positions),
        state_bytes={stage: size + frozen for stage, size in state_bytes(sum(parts.values()), training, gpus).items()},
        activation_bytes=_bytes(training) * kept * training.micro_batch_size * positions,
    )


def _transformer(config: Config, transformer: Transformer, gpus: int) -> Cost:
    model, training, positions = config.transformer.model, config.transformer, config.data.sequence_length
    forward = _transformer_forward(transformer, positions)
    parts = {
        "embedding": parameters(transformer.transformer.embed_tokens),
        "backbone": parameters(transformer.transformer) - parameters(transformer.transformer.embed_tokens),
        "output projection": parameters(transformer.lm_head),
    }
    kept = _backbone_activations(model, training.activation_checkpointing)
    return Cost(
        parameters=parts,
        training_tokens=_training_tokens(config, training),
        training_flops_per_token=3 * forward,
        inference_flops_per_token=forward,
        state_bytes=state_bytes(sum(parts.values()), training, gpus),
        activation_bytes=_bytes(training) * kept * training.micro_batch_size * positions,
    )


def _backbone_flops(backbone: Backbone, positions: int) -> float:
    """Forward pass over one position of a sequence of so many."""
    return forward_flops(backbone, (1, positions, backbone.config.hidden_size)) / positions


def state_bytes(number: int, training: TrainingConfig, gpus: int) -> dict[int, float]:
    """Parameters, gradients and Adam's state of one GPU, by ZeRO stage (Rajbhandari et al. 2020).

    bf16: 2 bytes a parameter, 4 a gradient (summed in fp32), 12 for the fp32 copy and the two moments; fp32: 4, 4 and
    8; bf16-mixed: as fp32, and 2 for the copy that autocast computes with. Averaged weights are 4 more of the
    optimiser's. Stage 1 shares the optimiser's part between the ranks, stage 2 the gradients too, stage 3 the
    parameters too. bf16 runs stage 0 as 1.
    """
    is_bf16 = training.precision in ("bf16", "auto")
    parameter, gradient = {"fp32": 4, "bf16-mixed": 6}.get(training.precision, 2), 4
    optimiser = (12 if is_bf16 else 8) + (4 if training.ema_decay else 0)
    shared = number * (parameter + gradient + optimiser / gpus)
    return {
        0: shared if is_bf16 else number * float(parameter + gradient + optimiser),
        1: shared,
        2: number * (parameter + (gradient + optimiser) / gpus),
        3: number * (parameter + gradient + optimiser) / gpus,
    }


def _backbone_activations(config: BackboneConfig, checkpointing: bool) -> float:
    """Numbers kept for one position: inputs of norms, products and gates; attention scores are never kept."""
    layer = 11 * config.hidden_size + 4 * config.intermediate_size
    if checkpointing:
        return config.num_hidden_layers * config.hidden_size + layer
    return config.num_hidden_layers * layer


def _training_tokens(config: Config, training: TrainingConfig) -> int:
    return training.steps * training.global_batch_size * config.data.sequence_length


def _bytes(training: TrainingConfig) -> int:
    return 4 if training.precision == "fp32" else 2
