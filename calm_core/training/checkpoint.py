"""Checkpoints of a training run, in a folder named by what is trained.

A retried or resubmitted task finds its own work. A checkpoint counts once its completion marker is there.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_MARKER = "complete"


class Checkpointer:
    """Saves and finds checkpoints of a DeepSpeed engine. Every rank calls every method.

    Args:
        folder: Local or shared folder of this training run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, engine: Any, step: int, state: dict[str, Any]) -> None:
        """Save model, optimiser and schedule, and the loop's own JSON state; older checkpoints are removed after."""
        tag = f"step-{step:08d}"
        engine.save_checkpoint(str(self.folder), tag=tag, save_latest=False)
        dist.barrier()
        if dist.get_rank() == 0:
            unfinished = self.folder / tag / f"{_MARKER}.part"
            unfinished.write_text(json.dumps(state))
            unfinished.replace(self.folder / tag / _MARKER)  # a marker is whole, or it is not there
            for older in self.folder.glob("step-*"):
                if older.name != tag:
                    shutil.rmtree(older)
        dist.barrier()

    def load_latest(self, engine: Any) -> dict[str, Any] | None:
        """Restore the latest complete checkpoint and return the loop's state; None when there is none."""
        latest: list[Any] = [None, None]
        if dist.get_rank() == 0 and (markers := sorted(self.folder.glob(f"step-*/{_MARKER}"))):
            latest = [markers[-1].parent.name, json.loads(markers[-1].read_text())]
        dist.broadcast_object_list(latest)
        if latest[0] is None:
            return None
        engine.load_checkpoint(str(self.folder), tag=latest[0])
        state: dict[str, Any] = latest[1]
        return state

    def discard(self) -> None:
        """Remove all checkpoints, once the trained artifact is complete."""
        if dist.get_rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def all_reduce_sum(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum of a small tensor over all ranks, on this device."""
    total = values.to(device)
    dist.all_reduce(total)
    return total
