"""What ranks share."""

from typing import Any

import torch
import torch.distributed as dist


def all_reduce_sum(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum of a small tensor over all ranks, on this device."""
    total = values.to(device)
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def gathered(value: Any) -> list[Any]:
    """What each rank has, by rank."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
