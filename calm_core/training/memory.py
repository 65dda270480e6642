"""Models that no memory here could hold are refused before they are made, rather than killed half-way."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from calm_core.config import TrainingConfig
from calm_core.errors import ConfigError
from calm_core.telemetry.processes import machine_bytes

BYTES_PER_RANK = 128 << 20
"""Of a process with torch and DeepSpeed, before it has a model; more than this on every machine."""

ModelT = TypeVar("ModelT", bound=nn.Module)


def bytes_per_parameter(config: TrainingConfig) -> int:
    """Of a parameter, its gradient, Adam's moments and its average in fp32; bf16 takes more. ZeRO 3 shares them all."""
    return 20 if config.ema_decay else 16


def made(make: Callable[[], ModelT], config: TrainingConfig, device: torch.device) -> ModelT:
    """A new model, from torch's seed.

    Args:
        make: Makes it.
        config: Of its training.
        device: Where it is trained.

    Raises:
        ConfigError: Training it needs more memory than all ranks have together.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # counts without storage or random numbers
        parameters = sum(p.numel() for p in make().parameters())
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    require_memory("", parameters, config, ranks, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), device)
    return make()


def require_memory(
    who: str, parameters: int, config: TrainingConfig, ranks: int, ranks_here: int, device: torch.device
) -> None:
    """Refuse a model that cannot be trained for want of memory.

    Args:
        who: Begins the message.
        parameters: Of the model.
        config: Of its training.
        ranks: That share it.
        ranks_here: Those of them on this machine.
        device: Where it is trained.

    Raises:
        ConfigError: Training it needs more memory than all ranks have together.
    """
    needed = bytes_per_parameter(config) * parameters // ranks
    if device.type == "cuda":
        memory, place = torch.cuda.get_device_properties(device).total_memory, "each GPU"
    else:
        needed, memory, place = needed * ranks_here, machine_bytes(), "this machine"
        if ranks_here > 1 and ranks_here * BYTES_PER_RANK > memory:
            raise ConfigError(
                f"{who}{ranks_here:,} processes take {ranks_here * BYTES_PER_RANK / 2**30:,.1f} GiB or more, {place} "
                f"has {memory / 2**30:,.1f} GiB; lower processes"
            )
    if needed > memory:
        raise ConfigError(
            f"{who}a model of {parameters:,} parameters takes {needed / 2**30:,.1f} GiB or more to train, {place} has "
            f"{memory / 2**30:,.1f} GiB; choose fewer layers or smaller sizes (`calm estimate` counts), or more ranks"
        )
