"""What ranks share."""

import torch
import torch.distributed as dist


def all_reduce_sum(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum of a small tensor over all ranks, on this device."""
    total = values.to(device)
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total
