"""What ranks share."""

from collections.abc import Mapping
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


def largest_of(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each of these figures as it is on the rank where it is largest."""
    largest = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    if dist.get_world_size() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return dict(zip(values, largest.tolist(), strict=True))
