"""Models that no memory here could hold are refused before they are made, rather than killed half-way."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from calm_core.errors import ConfigError
from calm_core.telemetry.processes import machine_bytes

BYTES_PER_PARAMETER = 16
"""Of a parameter, its gradient and Adam's state in fp32, more in bf16; the ranks share them at best (ZeRO stage 3)."""

ModelT = TypeVar("ModelT", bound=nn.Module)


def made(make: Callable[[], ModelT], device: torch.device) -> ModelT:
    """A new model, from torch's seed.

    Args:
        make: Makes it.
        device: Where it is trained.

    Raises:
        ConfigError: Training it needs more memory than all ranks have together.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # counts without storage or random numbers
        parameters = sum(p.numel() for p in make().parameters())
    needed = BYTES_PER_PARAMETER * parameters // (dist.get_world_size() if dist.is_initialized() else 1)
    if device.type == "cuda":
        memory, place = torch.cuda.get_device_properties(device).total_memory, "each GPU"
    else:
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        memory, place = machine_bytes(), "this machine"
    if needed > memory:
        raise ConfigError(
            f"a model of {parameters:,} parameters takes {needed / 2**30:,.1f} GiB or more to train, {place} has "
            f"{memory / 2**30:,.1f} GiB; choose fewer layers or smaller sizes (`calm estimate` counts), or more ranks"
        )
    return make()
