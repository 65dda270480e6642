"""DeepSpeed's engine: ZeRO, precision."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from calm_core.config import TrainingConfig
from calm_core.training.optimizer import learning_rate_factor, make_optimizer

DEFAULT_BUCKET = 500_000_000  # elements, DeepSpeed's default reduce_bucket_size


def wants_bf16(config: TrainingConfig) -> bool:
    """Whether to train in bfloat16 on this machine."""
    return config.precision == "bf16" or (config.precision == "auto" and torch.cuda.is_available())


def zero_stage(config: TrainingConfig) -> int:
    """The ZeRO stage that is run: bf16 needs 1 at least, since without ZeRO DeepSpeed sums gradients in bf16."""
    return max(config.zero_stage, 1) if wants_bf16(config) else config.zero_stage


def start_engine(model: torch.nn.Module, config: TrainingConfig) -> Any:
    """DeepSpeed's engine around a model, with AdamW and the learning-rate schedule.

    In bf16, weights and activations are bf16; gradients are summed, over micro-batches and over ranks, in fp32, and
    AdamW works on fp32 weights. The model's buffers stay as they are.
    """

    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: learning_rate_factor(config, step))

    parameters = sum(p.numel() for p in model.parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    micro_steps = config.global_batch_size // (config.micro_batch_size * dist.get_world_size())
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, config),
        lr_scheduler=schedule,
        config={
            "train_batch_size": config.global_batch_size,
            "train_micro_batch_size_per_gpu": config.micro_batch_size,
            "gradient_accumulation_steps": micro_steps,
            "gradient_clipping": config.gradient_clipping,
            "zero_allow_untested_optimizer": True,  # knows torch's AdamW, but no class that inherits from it
            "zero_optimization": {
                "stage": zero_stage(config),
                # DeepSpeed allocates the whole bucket anew each step, however small the model.
                "reduce_bucket_size": min(DEFAULT_BUCKET, parameters),
            },
            "bf16": {"enabled": wants_bf16(config)},
            # Both would follow the weights' type: in bf16 a sum of 120 micro-batches is 1 % off.
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "steps_per_print": 10**9,  # the loop reports itself
        },
    )
    for name, buffer in buffers.items():  # DeepSpeed makes them bf16 as well
        module, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(module), own_name, buffer.to(engine.device))
    return engine


def whole_weights(model: torch.nn.Module, config: TrainingConfig) -> dict[str, torch.Tensor]:
    """The whole model's weights in fp32 on CPU, contiguous; every rank has to ask.

    In bf16 they are what AdamW works on: the model's own are rounded to 3 digits, and miss small steps.
    """
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=zero_stage(config) == 3):
        weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    if wants_bf16(config):
        weights |= {name: safe_get_full_fp32_param(value).cpu() for name, value in model.named_parameters()}
    return weights
