"""DeepSpeed's engine: optimiser, learning rate, ZeRO, precision."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from calm_core.config import TrainingConfig

DEFAULT_BUCKET = 500_000_000  # elements, DeepSpeed's default reduce_bucket_size


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Share of the learning rate at a step: linear warm-up, constant, then linear decay over the last steps."""
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    decay_steps = config.decay_fraction * config.steps
    decay = (config.steps - step) / decay_steps if step > config.steps - decay_steps else 1.0
    return min(warmup, decay)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only, not on biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def wants_bf16(config: TrainingConfig) -> bool:
    """Whether to train in bfloat16 on this machine."""
    return config.precision == "bf16" or (config.precision == "auto" and torch.cuda.is_available())


def start_engine(model: torch.nn.Module, config: TrainingConfig) -> Any:
    """DeepSpeed's engine around a model, with AdamW and the learning-rate schedule."""

    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: learning_rate_factor(config, step))

    parameters = sum(p.numel() for p in model.parameters())
    micro_steps = config.global_batch_size // (config.micro_batch_size * dist.get_world_size())
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=AdamW(parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas),
        lr_scheduler=schedule,
        config={
            "train_batch_size": config.global_batch_size,
            "train_micro_batch_size_per_gpu": config.micro_batch_size,
            "gradient_accumulation_steps": micro_steps,
            "gradient_clipping": config.gradient_clipping,
            "zero_optimization": {
                "stage": config.zero_stage,
                # DeepSpeed allocates the whole bucket anew each step, however small the model.
                "reduce_bucket_size": min(DEFAULT_BUCKET, parameters),
            },
            "bf16": {"enabled": wants_bf16(config)},
            "steps_per_print": 10**9,  # the loop reports itself
        },
    )
    return engine


def whole_weights(engine: Any, config: TrainingConfig) -> dict[str, torch.Tensor]:
    """The whole model's weights on CPU, contiguous, gathered from all ranks; every rank calls it.

    In bf16 these are the fp32 weights that the optimiser steps, not their roundings that the model computes with.
    """
    model, optimizer = engine.module, engine.optimizer
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=config.zero_stage == 3):
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if not wants_bf16(config):
        return weights
    if config.zero_stage == 0:
        rounded = [p for group in optimizer.fp16_groups for p in group]
        stepped = dict(zip(map(id, rounded), [p for group in optimizer.fp32_groups for p in group], strict=True))
        masters = {name: stepped[id(p)] for name, p in model.named_parameters()}
    else:
        masters = {name: safe_get_full_fp32_param(p) for name, p in model.named_parameters()}
    # Constants of a head are used as they were rounded.
    return {name: masters.get(name, value).detach().float().cpu().clone() for name, value in weights.items()}
